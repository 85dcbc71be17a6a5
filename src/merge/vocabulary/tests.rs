use std::fs;

use serde_json::json;

use super::*;
use crate::dtype::DType;
use crate::plan::Expr;

/// Folders of models with these tokens and ids.
fn folders(vocabularies: &[&[&str]], rows: &[usize]) -> (tempfile::TempDir, Vec<Checkpoint>) {
    let dir = tempfile::tempdir().unwrap();
    let open = |(at, tokens): (usize, &&[&str])| {
        let folder = dir.path().join(at.to_string());
        fs::create_dir(&folder).unwrap();
        let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(id, t)| ((*t).to_owned(), id.into())).collect();
        let json = json!({"added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
        fs::write(folder.join("config.json"), json!({"vocab_size": rows[at]}).to_string()).unwrap();
        Checkpoint::without_weights(&folder).unwrap()
    };
    let models = vocabularies.iter().enumerate().map(open).collect();
    (dir, models)
}

/// Embeddings with one column: the number of the model, and the row behind the point.
fn embeddings(model: usize, rows: usize) -> PlannedTensor {
    let values = (0..rows).map(|row| model as f32 + row as f32 / 8.0).collect();
    let shape = vec![rows, 1];
    let expr = Expr::Values { shape: shape.clone(), values };
    PlannedTensor { name: "model.embed_tokens.weight".into(), dtype: DType::F32, shape, expr }
}

fn aligned(vocabulary: &Vocabulary, rows: &[usize]) -> Vec<Vec<f32>> {
    let tensors: Vec<PlannedTensor> = rows.iter().enumerate().map(|(at, rows)| embeddings(at + 1, *rows)).collect();
    let of: Vec<(usize, &PlannedTensor)> = tensors.iter().enumerate().collect();
    let made = vocabulary.align_tensor(&of).unwrap();
    made.iter().map(|tensor| tensor.read().unwrap()).collect()
}

fn new(models: &[Checkpoint], base: Option<usize>, settings: &VocabularySettings) -> Result<Vocabulary> {
    let models: Vec<&Checkpoint> = models.iter().collect();
    Vocabulary::new(&models, base, settings)
}

const UNION: VocabularySettings =
    VocabularySettings { source: TokenizerSource::Union, tokens: Vec::new(), pad_to_multiple_of: None };

#[test]
fn rows_go_by_token_and_the_bases_fill_in() {
    // The padding row of the first model's embeddings has no token.
    let (_dir, models) = folders(&[&["a", "b", "x"], &["b", "c", "x"]], &[4, 3]);
    let made = new(&models, Some(0), &UNION).unwrap();
    assert_eq!((made.rows(), made.texts.len()), (4, 4));
    assert_eq!(made.texts[3].as_deref(), Some("c"));
    let rows = aligned(&made, &[4, 3]);
    assert_eq!(rows, [vec![1.0, 1.125, 1.25, 2.125], vec![1.0, 2.0, 2.25, 2.125]]);
    let base = new(&models, Some(0), &VocabularySettings { source: TokenizerSource::Base, ..UNION }).unwrap();
    assert_eq!(aligned(&base, &[4, 3]), [vec![1.0, 1.125, 1.25], vec![1.0, 2.0, 2.25]]);
}

#[test]
fn without_a_base_several_rows_give_their_mean_and_padding_is_the_mean_of_all() {
    let (_dir, models) = folders(&[&["a"], &["a", "c"], &["c", "a"]], &[1, 2, 2]);
    let made = new(&models, None, &VocabularySettings { pad_to_multiple_of: Some(4), ..UNION }).unwrap();
    let rows = aligned(&made, &[1, 2, 2]);
    // c: the mean of 2.125 and 3.
    let mean = (1.0 + 2.5625) / 2.0;
    assert_eq!(rows[0], [1.0, 2.5625, mean, mean]);
    assert_eq!(rows[1][..2], [2.0, 2.125]);
    assert_eq!(rows[2][..2], [3.125, 3.0]);
}

#[test]
fn single_tokens_have_sources() {
    let (_dir, models) = folders(&[&["a", "b"], &["b", "c"]], &[2, 2]);
    let of = |text: &str, row: TokenRow, force: bool| (text.to_owned(), TokenSettings { row: Some(row), force });
    let tokens = vec![
        of("a", TokenRow::Zero, false),
        of("b", TokenRow::Model(1), true),
        of("c", TokenRow::Token { model: 1, token: TokenName::Text("b".to_owned()) }, false),
        of("new", TokenRow::Token { model: 0, token: TokenName::Id(1) }, false),
    ];
    let made = new(&models, Some(0), &VocabularySettings { tokens, ..UNION }).unwrap();
    let texts: Vec<&str> = made.texts.iter().flatten().map(String::as_str).collect();
    assert_eq!(texts, ["a", "b", "c", "new"]);
    assert_eq!(aligned(&made, &[2, 2]), [vec![1.0, 2.0, 2.0, 1.125], vec![0.0, 2.0, 2.125, 1.125]]);
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let (_dir, models) = folders(&[&["a", "b"], &["c"]], &[2, 1]);
    let error = |settings: &VocabularySettings| new(&models, Some(0), settings).unwrap_err().to_string();
    let base = VocabularySettings::new(TokenizerSource::Base);
    assert!(error(&base).contains("its tokenizer: expected tokens that the result's has"), "{}", error(&base));
    let zero = VocabularySettings { pad_to_multiple_of: Some(0), ..UNION };
    assert!(error(&zero).starts_with("pad_to_multiple_of: expected a number from 1"), "{}", error(&zero));
    let force = vec![("a".to_owned(), TokenSettings { row: None, force: true })];
    assert!(error(&VocabularySettings { tokens: force, ..UNION }).starts_with("tokens: expected a source"));
    let none = vec![("c".to_owned(), TokenSettings::default())];
    let made = new(&models, Some(0), &VocabularySettings { tokens: none, ..UNION }).unwrap();
    let tensors = [embeddings(1, 2), embeddings(2, 1)];
    let of: Vec<(usize, &PlannedTensor)> = tensors.iter().enumerate().collect();
    let message = made.align_tensor(&of).unwrap_err().to_string();
    assert!(message.contains("a row for the token \"c\""), "{message}");
    // Fewer rows than config.json says.
    let made = new(&models, Some(0), &UNION).unwrap();
    let tensors = [embeddings(1, 1), embeddings(2, 1)];
    let of: Vec<(usize, &PlannedTensor)> = tensors.iter().enumerate().collect();
    assert!(made.align_tensor(&of).unwrap_err().to_string().contains("expected at least 2 rows"));
}
