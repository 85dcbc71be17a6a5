//! Gives a model another model's vocabulary.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::settings::setting;
use super::{OutputKind, OutputSettings, Step, Watch};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::json::read_json_object;
use crate::merge::surgeon::{
    Approximation, Distance, Matching, Subwords, SurgeonSettings, TOKEN_IDS, TokenCounts, Transplanted, Weighting,
    transplant,
};
use crate::output::{Output, json_text};

/// Methods of mergekit that this version doesn't have, and why.
const ELSEWHERE: [(&str, &str); 2] = [
    ("landmark_pca", "what mergekit makes by it depends on random numbers and on the signs that LAPACK chooses"),
    ("stb", "mergekit 0.1.5 ends with an error for it"),
];

/// Settings of [`tokensurgeon`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensurgeonSettings {
    /// The model that gets another vocabulary: a Hugging Face folder.
    pub model: PathBuf,
    /// The model whose vocabulary it gets.
    pub donor: PathBuf,
    /// Where the result is written, and in which form.
    pub output: OutputSettings,
    /// How the rows of tokens that only the donor has are made: `omp`, `mp_rope`, `common_interpolation`, `subword`, `mean`,
    /// `zero`, `randn` or `john_hewitt`.
    #[serde(default = "method")]
    pub method: String,
    /// How many shared rows a row is made of, by `omp`, `mp_rope` and `common_interpolation`. Default: 64.
    #[serde(default)]
    pub k: Option<usize>,
    /// Whether `common_interpolation` compares rows by their angle.
    #[serde(default)]
    pub cosine_similarity: bool,
    /// The weights of `common_interpolation`: `distance_proportional`, `barycentric` or `least_squares`.
    #[serde(default)]
    pub weight_scheme: Option<String>,
    /// How `subword` makes a row of those of a token's parts: `mean`, `sum`, `weighted_mean` or `first_last`.
    #[serde(default)]
    pub subword_method: Option<String>,
    /// Where a byte has the row of its character, and the other way round: `yes`, `no`, or, as mergekit 0.1.5 has it,
    /// `lm_head` for the embeddings and `embed` for the output head.
    #[serde(default)]
    pub byte_match: Option<String>,
    /// Where a token has the row of the longest token with which it begins; the same words.
    #[serde(default)]
    pub prefix_match: Option<String>,
    /// Whether tokens that were hardly trained are left out.
    #[serde(default)]
    pub magikarp: bool,
    /// The seed of `randn` and `john_hewitt`. Default: 0.
    #[serde(default)]
    pub seed: Option<u64>,
}

fn method() -> String {
    "omp".to_owned()
}

/// mergekit's number of shared rows that a row is made of.
const K: usize = 64;

impl TokensurgeonSettings {
    /// Settings with mergekit's defaults.
    pub fn new(model: impl Into<PathBuf>, donor: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            donor: donor.into(),
            output: OutputSettings::new(output),
            method: method(),
            k: None,
            cosine_similarity: false,
            weight_scheme: None,
            subword_method: None,
            byte_match: None,
            prefix_match: None,
            magikarp: false,
            seed: None,
        }
    }

    fn approximation(&self) -> Result<Approximation> {
        let method = self.method.as_str();
        let of = |field: &str, reader: &str| {
            setting(field).expected(format_args!("`method` {reader}, which reads it")).found(method).setting()
        };
        if method != "common_interpolation" && self.cosine_similarity {
            return Err(of("cosine_similarity", "common_interpolation"));
        }
        if method != "common_interpolation" && self.weight_scheme.is_some() {
            return Err(of("weight_scheme", "common_interpolation"));
        }
        if method != "subword" && self.subword_method.is_some() {
            return Err(of("subword_method", "subword"));
        }
        if !matches!(method, "omp" | "mp_rope" | "common_interpolation") && self.k.is_some() {
            return Err(of("k", "omp, mp_rope or common_interpolation"));
        }
        if !matches!(method, "randn" | "john_hewitt") && self.seed.is_some() {
            return Err(of("seed", "randn or john_hewitt"));
        }
        Ok(match method {
            "omp" => Approximation::Omp,
            "mean" => Approximation::Mean,
            "zero" => Approximation::Zero,
            "randn" => Approximation::Randn,
            "john_hewitt" => Approximation::JohnHewitt,
            "mp_rope" => Approximation::MpRope,
            "common_interpolation" => {
                let distance = if self.cosine_similarity { Distance::Cosine } else { Distance::Euclidean };
                Approximation::CommonInterpolation(distance, self.weighting()?)
            }
            "subword" => Approximation::Subword(self.subwords()?),
            other => {
                let expected = "omp, mp_rope, common_interpolation, subword, mean, zero, randn or john_hewitt";
                let why = ELSEWHERE.iter().find(|(name, _)| *name == other).map_or("", |(_, why)| why);
                return Err(setting("method").expected(expected).found(format!("{other:?}")).hint(why).setting());
            }
        })
    }

    /// The tensors that the word in `field` stands for. mergekit 0.1.5 has embeddings and output head the wrong way round.
    fn matching(field: &str, word: Option<&str>) -> Result<Matching> {
        match word {
            None | Some("no") => Ok(Matching::No),
            Some("yes") => Ok(Matching::Yes),
            Some("lm_head") => Ok(Matching::Embeddings),
            Some("embed") => Ok(Matching::Head),
            Some(other) => {
                Err(setting(field).expected("yes, no, embed or lm_head").found(format!("{other:?}")).setting())
            }
        }
    }

    fn weighting(&self) -> Result<Weighting> {
        match self.weight_scheme.as_deref() {
            None | Some("distance_proportional") => Ok(Weighting::DistanceProportional),
            Some("barycentric") => Ok(Weighting::Barycentric),
            Some("least_squares") => Ok(Weighting::LeastSquares),
            Some(other) => {
                let finding = setting("weight_scheme").expected("distance_proportional, barycentric or least_squares");
                Err(finding.found(format!("{other:?}")).setting())
            }
        }
    }

    fn subwords(&self) -> Result<Subwords> {
        match self.subword_method.as_deref() {
            None | Some("mean") => Ok(Subwords::Mean),
            Some("sum") => Ok(Subwords::Sum),
            Some("weighted_mean") => Ok(Subwords::WeightedMean),
            Some("first_last") => Ok(Subwords::FirstLast),
            Some(other) => {
                let finding = setting("subword_method").expected("mean, sum, weighted_mean or first_last");
                Err(finding.found(format!("{other:?}")).setting())
            }
        }
    }
}

/// Makes a model with the vocabulary of another.
///
/// # Errors
/// [`crate::Error::Setting`]; errors of opening the models; those of [`transplant`].
pub fn tokensurgeon(settings: &TokensurgeonSettings, watch: Watch) -> Result<Output> {
    settings.output.check()?;
    if !matches!(settings.output.kind(), OutputKind::Hf | OutputKind::Gguf) {
        let finding = setting("to").expected("a model: a folder or a GGUF, which have a tokenizer");
        return Err(finding.found("another form").setting());
    }
    let of_surgeon = SurgeonSettings {
        approximation: settings.approximation()?,
        k: settings.k.unwrap_or(K),
        byte_match: TokensurgeonSettings::matching("byte_match", settings.byte_match.as_deref())?,
        prefix_match: TokensurgeonSettings::matching("prefix_match", settings.prefix_match.as_deref())?,
        magikarp: settings.magikarp,
        seed: settings.seed.unwrap_or_default(),
        max_memory_bytes: settings.output.destination.max_memory,
    };
    let (mut model, donor) = (Checkpoint::open(&settings.model)?, Checkpoint::open(&settings.donor)?);
    let done = |done, total| watch(Step { what: "approximating", done, total });
    let dry = settings.output.dry_run;
    let Transplanted { plan, counts } = transplant(&mut model, &donor, &of_surgeon, dry, &done)?;
    if model.take_tokenizer_of(donor.tokenizer_folder().to_owned())? {
        let from = donor.path().display();
        model.note(format!("{from}: its tokenizer has no chat template: that of {} is kept", settings.model.display()));
    }
    let TokenCounts { kept, approximated, zero } = counts;
    model.note(format!(
        "vocabulary of {}: {kept} tokens keep their rows, {approximated} are approximated by {}, {zero} rows are zeros",
        donor.path().display(),
        settings.method
    ));
    let words = [("byte_match", &settings.byte_match), ("prefix_match", &settings.prefix_match)];
    for (field, word) in words.into_iter().filter_map(|(field, word)| Some((field, word.as_deref()?))) {
        if let Some(tensor) =
            [("lm_head", "embeddings"), ("embed", "output head")].into_iter().find(|(of, _)| *of == word)
        {
            model.note(format!("`{field}` {word}: the {} alone, as in mergekit 0.1.5", tensor.1));
        }
    }
    if settings.magikarp && dry {
        model.note("which tokens were hardly trained is only known when values are read".to_owned());
    }
    let mut output = settings.output.model(&model, &plan)?;
    if let Some(bytes) = output.sidecars.files.get_mut(GENERATION) {
        *bytes = generation_config(&settings.model, &donor)?;
    }
    Ok(settings.output.split(output))
}

/// The file with the defaults of generation.
const GENERATION: &str = "generation_config.json";

/// The model's defaults of generation, with the donor's ids of tokens.
fn generation_config(model: &Path, donor: &Checkpoint) -> Result<Vec<u8>> {
    let mut config = read_json_object(&model.join(GENERATION))?;
    let theirs = donor.path().join(GENERATION);
    let theirs = if theirs.is_file() { read_json_object(&theirs)? } else { Map::new() };
    for field in TOKEN_IDS {
        config.remove(field);
        if let Some(id) = theirs.get(field).or_else(|| donor.config_json.get(field)) {
            config.insert(field.to_owned(), id.clone());
        }
    }
    Ok((json_text(&config) + "\n").into_bytes())
}
