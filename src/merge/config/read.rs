//! Reads the YAML of a configuration. Every key is known, or refused with its line.

use std::path::Path;

use super::method::BasePolicy;
use super::parameters::Parameters;
use super::{
    Content, InputModel, InputSlice, Inputs, MergeConfig, ModelName, ModuleConfig, OutputSlice, TokenConfig, TokenRow,
    TokenizerConfig, TokenizerSource,
};
use crate::dtype::DType;
use crate::error::{Error, Finding, IoContext, Result};
use crate::merge::combine::ModelMethod;
use crate::yaml::{self, Keys, Node, Value};

/// The largest file that is read.
const MAX_BYTES: u64 = 16 << 20;

impl MergeConfig {
    /// Reads the configuration in the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for what isn't YAML, an unknown key or a value of the wrong kind, with line and
    /// key; [`Error::Unsupported`] for types that nothing is computed in.
    pub fn read(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).at(path, "read")?.len();
        if size > MAX_BYTES {
            return Err(Finding::new(path, "").expected("a configuration of at most 16 MiB").found(size).format());
        }
        let bytes = std::fs::read(path).at(path, "read")?;
        let text = String::from_utf8(bytes)
            .map_err(|e| Finding::new(path, "").expected("UTF-8 text").found(e.utf8_error()).format())?;
        Self::parse(path, text)
    }

    /// The configuration with the text `text`, of the file at `path`.
    ///
    /// # Errors
    /// As [`MergeConfig::read`].
    pub fn parse(path: &Path, text: String) -> Result<Self> {
        let document =
            yaml::parse(&text, 1).map_err(|reason| Finding::new(path, "").expected("YAML").found(reason).format())?;
        let mut keys = Keys::of_file(path, &document)?;
        let method = method(&keys.require("merge_method", "a method's name")?)?;
        let base_model = model(&mut keys, "base_model")?;
        let parameters = Parameters::read(keys.take("parameters"))?;
        let [models, slices, modules] = ["models", "slices", "modules"].map(|key| given(keys.take(key)));
        let inputs = match (models, slices, modules) {
            (Some(models), None, None) => Inputs::Whole(Content::Models(read_models(&models)?)),
            (None, Some(slices), None) => Inputs::Whole(Content::Slices(read_slices(&slices)?)),
            (None, None, Some(modules)) => Inputs::Modules(read_modules(&modules)?),
            (None, None, None) => {
                return Err(keys.finding().expected("models, slices or modules to merge").found("none").format());
            }
            _ => {
                let finding = keys.finding().expected("one of models, slices and modules");
                return Err(finding.found("several").format());
            }
        };
        let [dtype, out_dtype] = ["dtype", "out_dtype"].map(|key| keys.take(key).map(|value| read_dtype(&value)));
        let source = keys.take("tokenizer_source").map(|value| tokenizer_source(&value)).transpose()?;
        let tokenizer = keys.take("tokenizer").map(|value| tokenizer(&value).map(|read| (value, read))).transpose()?;
        let tokenizer = match (source, tokenizer) {
            (Some(_), Some((value, _))) => {
                let finding = value.finding().expected("tokenizer or tokenizer_source").found("both");
                return Err(finding.format());
            }
            (Some(source), None) => Some(TokenizerConfig { source, tokens: Vec::new(), pad_to_multiple_of: None }),
            (None, tokenizer) => tokenizer.map(|(_, read)| read),
        };
        let chat_template =
            keys.take("chat_template").map(|value| value.text("auto, a name or a template").map(str::to_owned));
        let random_seed = keys.take("random_seed").map(|value| value.count("a seed")).transpose()?;
        keys.finish()?;
        if method.requirements().base == BasePolicy::Required && base_model.is_none() && !has_bases(&inputs) {
            let finding = Finding::new(path, "base_model").expected(format_args!("a model for {}", method.name()));
            return Err(finding.found("none").format());
        }
        Ok(Self {
            file: path.to_owned(),
            method,
            base_model,
            inputs,
            parameters,
            dtype: dtype.transpose()?,
            out_dtype: out_dtype.transpose()?,
            tokenizer,
            chat_template: chat_template.transpose()?,
            random_seed: random_seed.map(|seed| seed as u64),
            text,
        })
    }
}

/// Whether every slice has a base of its own.
fn has_bases(inputs: &Inputs) -> bool {
    let has = |content: &Content| match content {
        Content::Models(_) => false,
        Content::Slices(slices) => slices.iter().all(|slice| slice.base_model.is_some()),
    };
    match inputs {
        Inputs::Whole(content) => has(content),
        Inputs::Modules(modules) => modules.iter().all(|module| has(&module.content)),
    }
}

/// A value that isn't an empty list or mapping, which mergekit takes for none.
fn given(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !value.node.is_falsy())
}

fn method(value: &Value) -> Result<ModelMethod> {
    let name = value.text("a method's name")?;
    name.parse().map_err(|error| match error {
        Error::Setting(found) => {
            let Finding { expected, found, hint, .. } = *found;
            value.finding().expected(expected).found(found).hint(hint).format()
        }
        other => other,
    })
}

fn model(keys: &mut Keys, key: &'static str) -> Result<Option<ModelName>> {
    keys.take(key).map(|value| ModelName::read(&value)).transpose()
}

fn read_dtype(value: &Value) -> Result<DType> {
    let name = value.text("a type: float32, float16 or bfloat16")?;
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" => Ok(DType::F32),
        "float16" => Ok(DType::F16),
        "bfloat16" => Ok(DType::BF16),
        "float64" => {
            let finding = value.finding().expected("float32, float16 or bfloat16").found(name);
            Err(finding.hint("values are computed in float32 here").unsupported())
        }
        _ => {
            let known = ["float32", "float16", "bfloat16"];
            Err(value
                .finding()
                .expected(known.join(", "))
                .found(format_args!("{name:?}"))
                .did_you_mean(name, &known)
                .format())
        }
    }
}

fn read_models(value: &Value) -> Result<Vec<InputModel>> {
    let read = |item: &Value| {
        let mut keys = item.keys()?;
        let model = ModelName::read(&keys.require("model", "a model")?)?;
        let parameters = Parameters::read(keys.take("parameters"))?;
        keys.finish()?;
        Ok(InputModel { model, parameters })
    };
    value.items("a list of models")?.iter().map(read).collect()
}

fn read_slices(value: &Value) -> Result<Vec<OutputSlice>> {
    let read = |item: &Value| {
        let mut keys = item.keys()?;
        let sources = keys.require("sources", "a list of models with layer_range")?;
        let sources = given(Some(sources.clone())).ok_or_else(|| sources.wrong("models with layer_range"))?;
        let sources = sources.items("a list of models with layer_range")?;
        let sources = sources.iter().map(read_source).collect::<Result<_>>()?;
        let base_model = model(&mut keys, "base_model")?;
        let parameters = Parameters::read(keys.take("parameters"))?;
        // mergekit reads it and makes nothing of it.
        keys.take("residual_weight");
        keys.finish()?;
        Ok(OutputSlice { sources, base_model, parameters, place: item.finding().subject })
    };
    value.items("a list of slices")?.iter().map(read).collect()
}

fn read_source(item: &Value) -> Result<InputSlice> {
    const RANGE: &str = "the first layer and the one behind the last: [0, 16]";
    let mut keys = item.keys()?;
    let model = ModelName::read(&keys.require("model", "a model")?)?;
    let range = keys.require("layer_range", RANGE)?;
    let parameters = Parameters::read(keys.take("parameters"))?;
    keys.finish()?;
    let ends = range.items(RANGE)?;
    let ends = ends.iter().map(|end| end.count("the number of a layer, from 0")).collect::<Result<Vec<_>>>()?;
    let &[start, end] = ends.as_slice() else { return Err(range.wrong(RANGE)) };
    let place = range.finding().subject;
    if start > end {
        return Err(range.finding().expected(RANGE).found(format_args!("[{start}, {end}]")).format());
    }
    Ok(InputSlice { model, layers: start..end, parameters, place })
}

fn read_modules(value: &Value) -> Result<Vec<ModuleConfig>> {
    let read = |(name, item): (&str, Value)| {
        let mut keys = item.keys()?;
        let [models, slices] = ["models", "slices"].map(|key| given(keys.take(key)));
        let content = match (models, slices) {
            (Some(models), None) => Content::Models(read_models(&models)?),
            (None, Some(slices)) => Content::Slices(read_slices(&slices)?),
            (found, _) => {
                let found = if found.is_some() { "both" } else { "neither" };
                return Err(item.finding().expected("models or slices").found(found).format());
            }
        };
        let parameters = Parameters::read(keys.take("parameters"))?;
        keys.finish()?;
        Ok(ModuleConfig { name: name.to_owned(), content, parameters, place: item.finding().subject })
    };
    value.keys()?.all()?.into_iter().map(read).collect()
}

fn tokenizer_source(value: &Value) -> Result<TokenizerSource> {
    Ok(match value.node {
        Node::Text(text) if text == "union" => TokenizerSource::Union,
        Node::Text(text) if text == "base" => TokenizerSource::Base,
        _ => TokenizerSource::Model(ModelName::read(value)?),
    })
}

fn tokenizer(value: &Value) -> Result<TokenizerConfig> {
    let mut keys = value.keys()?;
    let source = keys.take("source").map(|value| tokenizer_source(&value)).transpose()?;
    let tokens = match keys.take("tokens") {
        Some(tokens) => tokens.keys()?.all()?.into_iter().map(token).collect::<Result<_>>()?,
        None => Vec::new(),
    };
    let pad = keys.take("pad_to_multiple_of").map(|value| value.count("a number of rows")).transpose()?;
    keys.finish()?;
    Ok(TokenizerConfig {
        source: source.unwrap_or(TokenizerSource::Union),
        tokens,
        pad_to_multiple_of: pad.filter(|pad| *pad > 0),
    })
}

fn token((name, value): (&str, Value)) -> Result<(String, TokenConfig)> {
    let mut keys = value.keys()?;
    let source = keys.take("source").map(|value| token_row(&value)).transpose()?;
    let force = keys.take("force").map(|value| value.flag()).transpose()?;
    keys.finish()?;
    Ok((name.to_owned(), TokenConfig { source, force: force.unwrap_or_default() }))
}

fn token_row(value: &Value) -> Result<TokenRow> {
    let Node::Map(map) = value.node else { return ModelName::read(value).map(TokenRow::Of) };
    if map.get("kind").is_none() {
        return ModelName::read(value).map(TokenRow::Of);
    }
    let mut keys = value.keys()?;
    let kind = keys.require("kind", "zero or model_token")?;
    let row = match kind.text("zero or model_token")? {
        "zero" => TokenRow::Zero,
        "model_token" => {
            let model = ModelName::read(&keys.require("model", "a model")?)?;
            let token = keys.take("token").map(|value| value.text("a token").map(str::to_owned)).transpose()?;
            let row = keys.take("token_id").map(|value| value.count("the number of a token")).transpose()?;
            match (token, row) {
                (Some(token), None) => TokenRow::OfToken(model, token),
                (None, Some(row)) => TokenRow::OfRow(model, row),
                (token, _) => {
                    let found = if token.is_some() { "both" } else { "neither" };
                    return Err(value.finding().expected("token or token_id").found(found).format());
                }
            }
        }
        _ => return Err(kind.wrong("zero or model_token")),
    };
    keys.finish()?;
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MergeConfig> {
        MergeConfig::parse(Path::new("c.yml"), text.to_owned())
    }

    #[test]
    fn configurations_are_read_whole() {
        let text = "merge_method: ties\nbase_model: b\nmodels:\n  - model: b\n  - model: org/a@v1+org/l\n    parameters:\n      \
                    weight: 0.5\nparameters: {int8_mask: true}\ndtype: torch.bfloat16\ntokenizer_source: union\n";
        let config = parse(text).unwrap();
        assert_eq!(config.models().iter().map(ToString::to_string).collect::<Vec<_>>(), ["b", "org/a@v1+org/l"]);
        assert_eq!((config.dtype, config.out_dtype), (Some(DType::BF16), None));
        assert_eq!(config.tokenizer().unwrap().source, TokenizerSource::Union);
        assert_eq!(config.text(), text);
        let text = "slices:\n- sources:\n  - {model: a, layer_range: [0, 2]}\n- sources: [{model: b, layer_range: [1, 3]}]\n\
                    merge_method: task_arithmetic\nbase_model: a\nrandom_seed: 7\ntokenizer:\n  source: base\n  tokens:\n    \
                    <x>: {source: {kind: zero}, force: true}\n    <y>: {source: {kind: model_token, model: a, token_id: 3}}\n";
        let config = parse(text).unwrap();
        let Inputs::Whole(Content::Slices(slices)) = &config.inputs else { panic!("{config:?}") };
        assert_eq!((slices.len(), slices[1].sources[0].layers.clone()), (2, 1..3));
        assert_eq!(slices[1].sources[0].place, "line 4: slices[1].sources[0].layer_range");
        assert_eq!(config.random_seed(), Some(7));
        let tokens = &config.tokenizer().unwrap().tokens;
        assert_eq!(tokens[0].1, TokenConfig { source: Some(TokenRow::Zero), force: true });
        let name = ModelName::parse("a").unwrap();
        assert_eq!(tokens[1].1.source, Some(TokenRow::OfRow(name, 3)));
    }

    #[test]
    fn mistakes_are_named_with_line_and_key() {
        let start = "merge_method: linear\n";
        for (text, expected) in [
            ("models: [{model: a}]\n", "c.yml: line 1: merge_method: expected a method's name, found nothing"),
            ("merge_method: tie\nmodels: [{model: a}]\n", "line 1: merge_method: expected one of linear, "),
            (
                &format!("{start}models:\n  - model: a\n    paramters: {{weight: 1}}\n"),
                "c.yml: line 4: models[0].paramters: expected one of model, parameters, found an unknown key; did you mean \
                 parameters?",
            ),
            (
                &format!("{start}models:\n  - model: a\n    parameters:\n      wieght: 1\n"),
                "line 5: models[0].parameters.wieght: expected one of weight, density,",
            ),
            (&format!("{start}models: []\n"), "c.yml: expected models, slices or modules to merge, found none"),
            (&format!("{start}models: [{{model: a}}]\nslices: [{{}}]\n"), "expected one of models, slices and modules"),
            (
                &format!("{start}slices: [{{sources: []}}]\n"),
                "line 2: slices[0].sources: expected models with layer_range",
            ),
            (
                &format!("{start}slices: [{{sources: [{{model: a, layer_range: [5, 3]}}]}}]\n"),
                "layer_range: expected the first layer and the one behind the last: [0, 16], found [5, 3]",
            ),
            (
                &format!("{start}slices: [{{sources: [{{model: a, layer_range: [-1, 3]}}]}}]\n"),
                "layer_range[0]: expected the number of a layer, from 0, found -1",
            ),
            (
                &format!("{start}slices: [{{sources: [{{model: a, layer_range: 3}}]}}]\n"),
                "layer_range: expected the first layer and the one behind the last: [0, 16], found 3",
            ),
            (
                &format!("{start}models: [{{model: a}}]\ndtype: int4\n"),
                "line 3: dtype: expected float32, float16, bfloat16",
            ),
            (
                &format!("{start}models: [{{model: a}}]\ndtype: float64\n"),
                "found float64; values are computed in float32",
            ),
            ("merge_method: ties\nmodels: [{model: a}]\n", "c.yml: base_model: expected a model for ties, found none"),
            (
                &format!("{start}models: [{{model: a+b+c}}]\n"),
                "line 2: models[0].model: expected a model: a path or org/name",
            ),
            (&format!("{start}models: [a]\n"), "line 2: models[0]: expected keys and values, found \"a\""),
            ("- a\n", "c.yml: expected keys and values, found a list"),
            ("a: [\n", "c.yml: expected YAML, found"),
            (
                &format!("{start}models: [{{model: a}}]\ntokenizer_source: base\ntokenizer: {{source: base}}\n"),
                "line 4: tokenizer: expected tokenizer or tokenizer_source, found both",
            ),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
