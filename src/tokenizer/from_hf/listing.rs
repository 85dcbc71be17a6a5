//! The tokens of a folder as transformers loads them, for those who change a tokenizer.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::{Value as Json, json};

use super::auto::Auto;
use super::files::{Files, Object, id_of};
use super::tiktoken;
use crate::checkpoint::{VocabularyForm, vocabulary_file};
use crate::error::Result;
use crate::tokenizer::sentencepiece::SentencePieceModel;

/// A token beside the model's own, as the list `added_tokens` of tokenizer.json has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ListedToken {
    pub(crate) text: String,
    pub(crate) id: usize,
    /// Its object in the list.
    pub(crate) json: Object,
}

impl ListedToken {
    /// A token that isn't special, as the tokenizers library adds a plain text.
    pub(crate) fn plain(text: &str) -> Self {
        Self::new(text, 0, false, true)
    }

    /// A token with a name, as transformers adds one that the vocabulary lacks.
    pub(crate) fn named(text: &str) -> Self {
        Self::new(text, 0, true, false)
    }

    fn new(text: &str, id: usize, special: bool, normalized: bool) -> Self {
        let json = json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": normalized, "special": special,
        });
        Self { text: text.to_owned(), id, json: json.as_object().cloned().unwrap_or_default() }
    }

    /// The same token with another id.
    pub(crate) fn with_id(&self, id: usize) -> Self {
        let mut token = Self { id, ..self.clone() };
        token.json.insert("id".to_owned(), id.into());
        token
    }
}

/// The tokens of a folder.
#[derive(Debug)]
pub(crate) struct Listing {
    /// tokenizer.json, or the one made of older files. `None` where the vocabulary has another form.
    pub(crate) json: Option<Object>,
    /// All tokens with their ids, in order of ids.
    pub(crate) ids: Vec<(String, usize)>,
    /// The added tokens, in order of ids.
    pub(crate) added: Vec<ListedToken>,
    /// How many tokens are the model's own.
    pub(crate) own: usize,
    /// Texts of the tokens that have a name, such as `bos_token`.
    pub(crate) named: Vec<String>,
}

impl Listing {
    /// Reads the tokens in `folder`, whose config.json is `config`. `None` if it has no tokenizer.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for malformed files, and what reading them meets.
    pub(crate) fn of(folder: &Path, config: &Object) -> Result<Option<Self>> {
        let Some((name, form)) = vocabulary_file(folder) else { return Ok(None) };
        let files = Files::open(folder, config.clone())?;
        if form == VocabularyForm::Tokenizer {
            return Self::of_json(&files).map(Some);
        }
        let mut ids = match form {
            VocabularyForm::SentencePiece => pieces(&files, &name)?,
            VocabularyForm::Tiktoken => tiktoken::ids(&files, &name)?,
            _ => {
                let finding = files.finding_in("", "tokenizer").expected("tokenizer.json, or a file of SentencePiece");
                let hint = "save the tokenizer with save_pretrained of transformers";
                return Err(finding.found(name).hint(hint).unsupported());
            }
        };
        ids.sort_by_key(|(_, id)| *id);
        // Of equal texts the first one counts.
        let mut seen = HashSet::new();
        ids.retain(|(text, _)| seen.insert(text.clone()));
        let own = ids.len();
        Ok(Some(Self { json: None, ids, added: Vec::new(), own, named: Vec::new() }))
    }

    fn of_json(files: &Files) -> Result<Self> {
        let auto = Auto::load(files)?;
        let ids = auto.ids().into_iter().map(|(text, id)| (text.to_owned(), id)).collect();
        let mut objects: HashMap<String, Object> = HashMap::new();
        let listed = auto.json.get("added_tokens").and_then(Json::as_array).into_iter().flatten();
        // What tokenizer_config.json says of a token counts.
        let decoder = files.setting("added_tokens_decoder").and_then(Json::as_object).into_iter();
        for token in listed.chain(decoder.flat_map(|tokens| tokens.values())).filter_map(Json::as_object) {
            if let Some(text) = token.get("content").and_then(Json::as_str) {
                objects.insert(text.to_owned(), token.clone());
            }
        }
        let mut added: Vec<ListedToken> = Vec::with_capacity(auto.added.len());
        for (text, token) in &auto.added {
            let mut listed = ListedToken::new(text, token.id, token.special, token.normalized);
            let known = objects.get(text).into_iter().flatten();
            let flags = known.filter(|(name, _)| listed.json.contains_key(*name) && *name != "id");
            let flags: Vec<(String, Json)> = flags.map(|(name, flag)| (name.clone(), flag.clone())).collect();
            listed.json.extend(flags);
            added.push(listed);
        }
        added.sort_by(|one, other| (one.id, &one.text).cmp(&(other.id, &other.text)));
        let (own, named) = (auto.vocab.len(), auto.named.clone());
        Ok(Self { json: Some(auto.json.into_owned()), ids, added, own, named })
    }
}

/// The pieces of a SentencePiece model, and the tokens of added_tokens.json.
fn pieces(files: &Files, name: &str) -> Result<Vec<(String, usize)>> {
    let bytes = files.bytes(name)?.unwrap_or_default();
    let model = SentencePieceModel::parse(&files.folder.join(name), &bytes)?;
    let pieces = model.pieces.into_iter().enumerate().map(|(id, piece)| (piece.text, id));
    let added = files.json("added_tokens.json")?.unwrap_or_default();
    let added = added.iter().filter_map(|(text, id)| Some((text.clone(), id_of(id)?)));
    Ok(pieces.chain(added).collect())
}
