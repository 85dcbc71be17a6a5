//! Tests of what is extracted of which modules.

use super::*;

fn selected(base: &Model, finetuned: &Model, selection: &Selection) -> Result<(Extraction, Vec<String>)> {
    let pairs = Pairs::new(&base.base("base"), &finetuned.base("finetuned"), selection)?;
    Ok((pairs.extract(&OPTIONS, &|| ())?, pairs.notes))
}

const EMBEDDINGS: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const NORM: &str = "model.norm.weight";

/// Everything but one layer changed.
fn finetuned(base: &Model) -> Model {
    let norm = base.changed(NORM, |_, _| 1.0);
    [EMBEDDINGS, Q, DOWN].iter().fold(norm, |model, name| model.changed(name, rank_two))
}

fn names(of: &Extraction) -> (Vec<&str>, Vec<&str>) {
    let updates = of.updates.iter().map(|(name, _)| name.as_str()).collect();
    (updates, of.saved.iter().map(|tensor| tensor.name.as_str()).collect())
}

fn texts(of: &[&str]) -> Vec<String> {
    of.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn patterns_select_modules_and_a_note_names_the_others() {
    let base = Model::llama(false);
    let only_q = Selection { include_regex: texts(&["q_proj"]), ..Selection::default() };
    let (found, notes) = selected(&base, &finetuned(&base), &only_q).unwrap();
    assert_eq!(names(&found), (vec![Q], vec![EMBEDDINGS]), "embeddings are saved all the same");
    let note = format!("left out 2 changed tensors, not selected: {DOWN}, {NORM}");
    assert_eq!(notes, [note]);
    let without = Selection { exclude_regex: texts(&["embed", "^model.norm$", "mlp"]), ..Selection::default() };
    let (found, notes) = selected(&base, &finetuned(&base), &without).unwrap();
    assert_eq!(names(&found), (vec![Q], vec![]));
    assert!(notes[0].starts_with("left out 3 changed tensors"), "{notes:?}");
    let unknown = Selection { include_regex: texts(&["x_proj"]), ..Selection::default() };
    let error = selected(&base, &finetuned(&base), &unknown).unwrap_err().to_string();
    assert!(error.starts_with("include_regex: expected one that a module of the base has"), "{error}");
}

#[test]
fn modules_are_saved_whole_or_skipped_as_asked_for() {
    let base = Model::llama(false);
    let whole = Selection { save_module: texts(&["q_proj"]), skip_undecomposable: true, ..Selection::default() };
    let (found, notes) = selected(&base, &finetuned(&base), &whole).unwrap();
    assert_eq!(names(&found), (vec![DOWN], vec![EMBEDDINGS, Q]));
    assert_eq!(notes, [format!("left out a changed tensor, not selected: {NORM}")]);
    let lora = found.lora(&base.base("base")).unwrap();
    let saved = json!(["model.embed_tokens", "model.layers.0.self_attn.q_proj"]);
    assert_eq!(lora.config["modules_to_save"], saved);
    // Experts, which are refused otherwise.
    let config = json!({"architectures": ["OtherForCausalLM"]});
    let expert = "model.layers.0.mlp.experts.0.w1.weight";
    let base = Model::new(config, &[(expert, &[4, 4]), ("model.layers.0.q_proj.weight", &[8, 8])]);
    let changed = base.changed(expert, |_, _| 1.0).changed("model.layers.0.q_proj.weight", rank_two);
    assert!(selected(&base, &changed, &Selection::default()).is_err());
    let (found, notes) = selected(&base, &changed, &Selection { save_module: Vec::new(), ..whole }).unwrap();
    assert_eq!((found.updates.len(), notes.len()), (1, 1));
}

#[test]
fn embeddings_are_decomposed_where_they_are_not_tied() {
    let base = Model::llama(false);
    let changed = finetuned(&base).changed(HEAD, rank_two);
    let low_rank = Selection { embed_lora: true, ..Selection::default() };
    let (found, _) = selected(&base, &changed, &low_rank).unwrap();
    assert_eq!(names(&found), (vec![EMBEDDINGS, Q, DOWN, HEAD], vec![NORM]));
    for (name, update) in &found.updates[..1] {
        let expected = changed.plan.get(name).unwrap().read().unwrap();
        let before = base.plan.get(name).unwrap().read().unwrap();
        let delta = values(&update.delta());
        let gap = delta.iter().zip(&expected).zip(&before).map(|((d, x), b)| (d - (x - b)).abs()).fold(0.0, f32::max);
        assert!(gap < 1e-5, "{name} {gap}");
    }
    let lora = found.lora(&base.base("base")).unwrap();
    let name = |end: &str| format!("base_model.model.model.embed_tokens.lora_embedding_{end}");
    assert_eq!(lora.tensors.get(&name("A")).unwrap().shape[1], 50);
    assert_eq!(lora.tensors.get(&name("B")).unwrap().shape[0], 24);

    let tied = Model::llama(true);
    let (found, notes) = selected(&tied, &finetuned(&tied), &low_rank).unwrap();
    assert_eq!(names(&found), (vec![Q, DOWN], vec![EMBEDDINGS, NORM, HEAD]));
    assert_eq!(notes, ["the embeddings are tied to the output head, and saved whole"]);
}

#[test]
fn another_vocabulary_is_saved_whole_with_a_note() {
    let base = Model::llama(false);
    let mut other = base.changed(Q, rank_two);
    for name in [EMBEDDINGS, HEAD] {
        let tensor = other.plan.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
        *tensor = planned(name, &[53, 24], vec![0.5; 53 * 24]);
    }
    let (found, notes) = selected(&base, &other, &Selection { embed_lora: true, ..Selection::default() }).unwrap();
    assert_eq!(names(&found), (vec![Q], vec![EMBEDDINGS, HEAD]));
    assert_eq!(found.saved[0].shape, [53, 24]);
    assert!(notes[0].starts_with("model.embed_tokens.weight: 53 rows, where the base has 50"), "{notes:?}");
    assert!(notes[0].contains("model.resize_token_embeddings(53)"), "{notes:?}");
    let without = Selection { exclude_regex: texts(&["embed_tokens", "lm_head"]), ..Selection::default() };
    let (found, _) = selected(&base, &other, &without).unwrap();
    assert_eq!(names(&found), (vec![Q], vec![]));
}

#[test]
fn small_singular_values_are_left_out() {
    let base = Model::llama(false);
    let changed = base.changed(Q, rank_two).changed(DOWN, |i, j| 1e-4 * rank_two(i, j));
    let pairs = Pairs::new(&base.base("base"), &changed.base("finetuned"), &Selection::default()).unwrap();
    let with = |sv_epsilon| pairs.extract(&ExtractOptions { sv_epsilon, ..OPTIONS }, &|| ()).unwrap();
    let ranks = |of: &Extraction| of.modules.iter().map(|module| module.rank).collect::<Vec<_>>();
    let all = with(0.0);
    assert_eq!((ranks(&all).len(), all.totals.negligible), (2, 0));
    // The singular values of the first change are about 14 and 0.14, those of the second a ten thousandth of that.
    let one = with(0.5);
    assert_eq!((ranks(&one), one.totals.negligible, one.totals.unchanged), (vec![1], 1, 3));
}

#[test]
fn experts_get_factors_of_one_rank() {
    let config = json!({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_hidden_layers": 1});
    let module = "model.layers.0.mlp.experts";
    let name = |expert: usize, part: &str| format!("{module}.{expert}.{part}_proj.weight");
    let names: Vec<String> = (0..3).flat_map(|expert| ["gate", "up", "down"].map(|part| name(expert, part))).collect();
    let shape = |name: &str| if name.contains("down") { [8, 6] } else { [6, 8] };
    let shapes: Vec<[usize; 2]> = names.iter().map(|name| shape(name)).collect();
    let tensors: Vec<(&str, &[usize])> = names.iter().map(String::as_str).zip(shapes.iter().map(|s| &s[..])).collect();
    let base = Model::new(config, &tensors);
    // The gate of one expert, as the upper rows of its matrix.
    let changed = base.changed(&name(1, "gate"), rank_two);
    let (found, notes) = selected(&base, &changed, &Selection::default()).unwrap();
    assert!(notes.is_empty() && found.updates.is_empty(), "{notes:?}");
    let [update] = found.parameters.as_slice() else { panic!("{:?}", found.parameters) };
    assert_eq!(update.path(), format!("{module}.gate_up_proj"));
    let (a, b, rank) = (values(&update.a), values(&update.b), OPTIONS.rank);
    assert_eq!((update.a.shape(), update.b.shape()), (vec![3 * rank, 8], vec![12, 3 * rank]));
    for (expert, row, col) in (0..3).flat_map(|e| (0..12).flat_map(move |i| (0..8).map(move |j| (e, i, j)))) {
        let of_b = |k: usize| b[row * 3 * rank + 3 * k + expert];
        let delta: f32 = (0..rank).map(|k| of_b(k) * a[(expert * rank + k) * 8 + col]).sum();
        let expected = if expert == 1 && row < 6 { rank_two(row, col) } else { 0.0 };
        assert!((delta - expected).abs() < 1e-5, "{expert} {row} {col}: {delta}, not {expected}");
    }
    let lora = found.lora(&base.base("base")).unwrap();
    assert_eq!(lora.config["target_parameters"], json!([update.path()]));
    assert_eq!((&lora.config["target_modules"], &lora.config["r"]), (&json!([]), &json!(rank)));
    let names: Vec<&str> = lora.tensors.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let factor = |which: &str| format!("base_model.model.{module}.lora_{which}.weight");
    assert_eq!(names, [factor("A"), factor("B")]);
    // Two parameters of a module are wrapped one in the other.
    let both = changed.changed(&name(2, "down"), rank_two);
    let lora = selected(&base, &both, &Selection::default()).unwrap().0.lora(&base.base("base")).unwrap();
    assert_eq!(lora.tensors.tensors[0].name, format!("base_model.model.{module}.base_layer.lora_A.weight"));
    assert_eq!(lora.tensors.tensors[2].shape, [3 * rank, 6]);
    let without = Selection { exclude_regex: texts(&["experts"]), ..Selection::default() };
    let pairs = Pairs::new(&base.base("base"), &both.base("finetuned"), &without).unwrap();
    assert!(pairs.experts.is_empty());
    assert!(pairs.notes[0].starts_with("left out 2 changed tensors"), "{:?}", pairs.notes);
}
