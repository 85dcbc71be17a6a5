//! The file that describes a mixture: mergekit-moe's YAML.

use std::path::Path;

use crate::dtype::DType;
use crate::error::{Finding, IoContext, Result};
use crate::yaml::{self, Keys, Node, Typed, Value};

/// A model whose feed-forward blocks become an expert.
#[derive(Debug, Clone, PartialEq)]
pub struct Expert {
    /// The model's folder, or its name on the hub.
    pub source_model: String,
    /// Texts of the kind that the expert is chosen for.
    pub positive_prompts: Vec<String>,
    /// Texts of the kind that it isn't chosen for.
    pub negative_prompts: Vec<String>,
    /// The standard deviation of noise that is added to its weights.
    pub noise_scale: Option<f64>,
    /// The factor of what it adds to the layer's states.
    pub residual_scale: Option<f64>,
}

/// Where the gates come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// The states that enter a layer at the last token of the prompts.
    Hidden,
    /// Their mean over all tokens.
    HiddenAverage,
    /// The embeddings of the prompts' tokens, for all layers alike.
    CheapEmbed,
    /// Normally distributed random numbers.
    Random,
    /// Random numbers with which torch initialises a linear layer.
    UniformRandom,
}

const GATE_MODES: [(&str, GateMode); 6] = [
    ("hidden", GateMode::Hidden),
    ("cheap_embed", GateMode::CheapEmbed),
    ("random", GateMode::Random),
    ("uniform_random", GateMode::UniformRandom),
    ("hidden_last", GateMode::Hidden),
    ("hidden_avg", GateMode::HiddenAverage),
];

impl GateMode {
    /// Whether the gates depend on no prompt.
    pub fn is_random(self) -> bool {
        matches!(self, Self::Random | Self::UniformRandom)
    }

    /// Whether the base has to be run for them.
    pub fn is_hidden(self) -> bool {
        matches!(self, Self::Hidden | Self::HiddenAverage)
    }
}

/// The content of a mixture's file.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    /// The model from which everything but the experts comes.
    pub base_model: String,
    /// The experts among which the router chooses.
    pub experts: Vec<Expert>,
    /// Where the gates come from.
    pub gate_mode: GateMode,
    /// The type of the result; that of the base's config.json where it isn't given.
    pub dtype: Option<DType>,
    /// The number of experts for a token.
    pub experts_per_token: usize,
    /// Experts that every token has.
    pub shared_experts: Vec<Expert>,
    /// The beginning of the name of the result's architecture.
    pub architecture: Option<String>,
    /// The file as it is.
    pub text: String,
}

impl MoeConfig {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Format`] for an unknown key or a value of another kind, with its line.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).at(path, "read")?;
        let text = String::from_utf8(bytes)
            .map_err(|error| Finding::new(path, "").expected("UTF-8 text").found(error.utf8_error()).format())?;
        let document =
            yaml::parse(&text, 1).map_err(|reason| Finding::new(path, "").expected("YAML").found(reason).format())?;
        let mut keys = Keys::of_file(path, &document)?;
        let base_model = model(&keys.require("base_model", "the name of a model")?)?;
        let experts = experts(&keys.require("experts", "a list of experts")?)?;
        let gate_mode = keys.take("gate_mode").map_or(Ok(GateMode::Hidden), |value| gate_mode(&value))?;
        let dtype = keys.take("dtype").map(|value| dtype(&value)).transpose()?;
        let experts_per_token = match keys.take("experts_per_token") {
            Some(value) => value.count("a number of experts")?,
            None => 2,
        };
        let shared_experts = keys.take("shared_experts").map(|value| self::experts(&value)).transpose()?;
        let architecture = keys.take("architecture").map(|value| value.text("the name of an architecture"));
        let architecture = architecture.transpose()?.map(str::to_owned);
        keys.finish()?;
        let shared_experts = shared_experts.unwrap_or_default();
        Ok(Self { base_model, experts, gate_mode, dtype, experts_per_token, shared_experts, architecture, text })
    }

    /// The experts, with those that every token has behind the others.
    pub fn all_experts(&self) -> impl Iterator<Item = &Expert> {
        self.experts.iter().chain(&self.shared_experts)
    }

    /// The experts that have a gate.
    pub fn gated(&self) -> Vec<&Expert> {
        let shared = self.shared_experts.iter();
        let has_prompts = shared.clone().any(|expert| !expert.positive_prompts.is_empty());
        self.experts.iter().chain(shared.filter(|_| has_prompts || self.gate_mode.is_random())).collect()
    }

    /// Checks what mergekit-moe checks: numbers of experts, and prompts that tell them apart. With
    /// `allow_all_same`, all experts may be the same model.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`].
    pub fn check(&self, path: &Path, allow_all_same: bool) -> Result<()> {
        let finding = |key: &str| Finding::new(path, key);
        let count = self.experts.len();
        if self.experts_per_token < 1 || self.experts_per_token > count {
            let expected = format!("from 1 to the number of experts, {count}");
            return Err(finding("experts_per_token").expected(expected).found(self.experts_per_token).mismatch());
        }
        let prompted = |expert: &&Expert| !expert.positive_prompts.is_empty();
        let shared = self.shared_experts.iter().filter(prompted).count();
        if shared != 0 && shared != self.shared_experts.len() {
            let expected = "positive_prompts for all or for none";
            return Err(finding("shared_experts").expected(expected).found("some with and some without").mismatch());
        }
        let first = &self.experts[0];
        if !self.gate_mode.is_random() {
            if let Some(place) = self.experts.iter().position(|expert| !prompted(&expert)) {
                let finding = finding(&format!("experts[{place}].positive_prompts"));
                let hint = "random gates (gate_mode: random) need none, and the result has to be trained then";
                return Err(finding.expected("prompts of the expert's kind").found("none").hint(hint).mismatch());
            }
            let same = |other: &Expert| {
                other.positive_prompts == first.positive_prompts && other.negative_prompts == first.negative_prompts
            };
            if self.experts.iter().all(same) {
                let expected = "prompts that tell the experts apart";
                let hint = "each expert's positive_prompts say what is routed to it";
                return Err(finding("experts").expected(expected).found("the same for all").hint(hint).mismatch());
            }
            if !allow_all_same && self.experts.iter().all(|expert| expert.source_model == first.source_model) {
                let found =
                    format!("{} for all, which gives that model's answers at a higher cost", first.source_model);
                let hint = "`allow_all_same` allows it, for a model that is trained afterwards";
                return Err(finding("experts").expected("different models").found(found).hint(hint).mismatch());
            }
        }
        Ok(())
    }
}

/// A model's name. mergekit-moe merges no LoRA into it.
fn model(value: &Value<'_>) -> Result<String> {
    let name = value.text("the name of a model")?;
    if name.is_empty() {
        return Err(value.wrong("the name of a model"));
    }
    if name.contains('+') && !Path::new(name).exists() {
        let finding = value.finding().expected("a model").found(format_args!("{name:?}, a model with a LoRA"));
        return Err(finding.hint("merge the adapter into its model first").unsupported());
    }
    Ok(name.to_owned())
}

fn experts(value: &Value<'_>) -> Result<Vec<Expert>> {
    let experts = value.items("a list of experts")?.iter().map(expert).collect::<Result<Vec<_>>>()?;
    if experts.is_empty() {
        return Err(value.wrong("a list of experts"));
    }
    Ok(experts)
}

fn expert(value: &Value<'_>) -> Result<Expert> {
    let mut keys = value.keys()?;
    let source_model = model(&keys.require("source_model", "the name of a model")?)?;
    let mut prompts = |key| keys.take(key).map_or(Ok(Vec::new()), |value| texts(&value));
    let (positive_prompts, negative_prompts) = (prompts("positive_prompts")?, prompts("negative_prompts")?);
    let mut scale = |key| keys.take(key).map(|value| number(&value)).transpose();
    let (noise_scale, residual_scale) = (scale("noise_scale")?, scale("residual_scale")?);
    keys.finish()?;
    Ok(Expert { source_model, positive_prompts, negative_prompts, noise_scale, residual_scale })
}

fn texts(value: &Value<'_>) -> Result<Vec<String>> {
    let items = value.items("a list of texts")?;
    items.iter().map(|item| Ok(item.text("a text")?.to_owned())).collect()
}

/// A finite number. `1e-2` is a text in YAML 1.1, and pydantic reads the number that is meant.
fn number(value: &Value<'_>) -> Result<f64> {
    let number = match value.node {
        Node::Typed(Typed::Float(number), _) => Some(*number),
        Node::Typed(Typed::Int(number), _) => Some(*number as f64),
        Node::Text(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| number.is_finite()).ok_or_else(|| value.wrong("a finite number"))
}

fn gate_mode(value: &Value<'_>) -> Result<GateMode> {
    let names = GATE_MODES.map(|(name, _)| name);
    let expected = format!("one of {}", names.join(", "));
    let text = value.text(&expected)?;
    let found = GATE_MODES.into_iter().find(|(name, _)| *name == text).map(|(_, mode)| mode);
    found.ok_or_else(|| {
        value.finding().expected(&expected).found(format_args!("{text:?}")).did_you_mean(text, &names).format()
    })
}

fn dtype(value: &Value<'_>) -> Result<DType> {
    const EXPECTED: &str = "float32, float16 or bfloat16";
    let text = value.text(EXPECTED)?;
    let name = text.strip_prefix("torch.").unwrap_or(text);
    let found = [DType::F32, DType::F16, DType::BF16].into_iter().find(|dtype| dtype.torch_name() == Some(name));
    found.ok_or_else(|| value.wrong(EXPECTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<MoeConfig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("moe.yml");
        std::fs::write(&path, text).unwrap();
        let read = MoeConfig::read(&path).and_then(|config| config.check(&path, false).map(|()| config));
        read.map_err(|error| error.map_texts(&|text| text.replace(&*folder.path().to_string_lossy(), "")))
    }

    #[test]
    fn a_file_of_mergekit_is_read() {
        let config = read(
            "base_model: a\ndtype: bfloat16\nexperts:\n  - source_model: a\n    positive_prompts:\n      - one\n      \
             - two\n    noise_scale: 1e-2\n  - source_model: b\n    positive_prompts: [three]\n    negative_prompts: \
             [four]\n    residual_scale: 1\n",
        )
        .unwrap();
        assert_eq!(
            (config.gate_mode, config.dtype, config.experts_per_token),
            (GateMode::Hidden, Some(DType::BF16), 2)
        );
        assert_eq!(config.experts[0].positive_prompts, ["one", "two"]);
        assert_eq!((config.experts[0].noise_scale, config.experts[1].residual_scale), (Some(0.01), Some(1.0)));
        assert_eq!(config.gated().len(), 2);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let two = "base_model: a\nexperts:\n- source_model: a\n  positive_prompts: [x]\n- source_model: b\n  ";
        for (text, expected) in [
            ("experts: []\n".to_owned(), "line 1: base_model: expected the name of a model, found nothing"),
            (format!("{two}positive_promts: [y]\n"), "line 6: experts[1].positive_promts: expected one of"),
            (format!("{two}positive_prompts: y\n"), "line 6: experts[1].positive_prompts: expected a list of texts"),
            (format!("{two}positive_prompts: [1]\n"), "expected a text, found 1"),
            (format!("{two}positive_prompts: [y]\ngate_mode: hiden\n"), "found \"hiden\"; did you mean hidden?"),
            (format!("{two}positive_prompts: [y]\ndtype: int8\n"), "expected float32, float16 or bfloat16"),
            (format!("{two}positive_prompts: [y]\nexperts_per_token: 3\n"), "from 1 to the number of experts, 2"),
            (format!("{two}positive_prompts: [x]\n"), "expected prompts that tell the experts apart"),
            (format!("{two}noise_scale: .inf\n"), "expected a finite number"),
            (format!("{two}negative_prompts: [y]\n"), "experts[1].positive_prompts: expected prompts of the expert's"),
            (format!("{}positive_prompts: [y]\n", two.replace(": b", ": a")), "expected different models"),
            (format!("{}positive_prompts: [y]\n", two.replace(": b", ": b+lora")), "a model with a LoRA"),
        ] {
            let message = read(&text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
