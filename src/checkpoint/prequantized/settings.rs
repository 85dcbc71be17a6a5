//! Finds the settings that describe how a checkpoint's weights were quantized.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::parts::Parts;
use super::{Weight, awq, bitnet, bitsandbytes, compressed_tensors, fp4, fp8, gptq};
use crate::checkpoint::TEXT_CONFIGS;
use crate::error::{Finding, Result};
use crate::json::{is_off, read_json_object};

/// A method: its name in `quant_method`, and the function that unpacks its tensors.
pub(super) struct Method {
    pub(super) name: &'static str,
    pub(super) unpack: fn(&Settings, &mut Parts) -> Result<Vec<Weight>>,
}

static METHODS: [Method; 9] = [
    Method { name: "fp8", unpack: fp8::unpack },
    Method { name: "fbgemm_fp8", unpack: fp8::unpack },
    Method { name: "gptq", unpack: gptq::unpack },
    Method { name: "awq", unpack: awq::unpack },
    Method { name: "compressed-tensors", unpack: compressed_tensors::unpack },
    Method { name: "bitsandbytes", unpack: bitsandbytes::unpack },
    Method { name: "mxfp4", unpack: fp4::unpack_mxfp4 },
    Method { name: "modelopt", unpack: fp4::unpack_modelopt },
    Method { name: "bitnet", unpack: bitnet::unpack },
];

/// Fields of config.json, or of its text_config, that hold the settings.
const FIELDS: [&str; 2] = ["quantization_config", "compression_config"];

/// Objects in config.json that can have such fields themselves.
fn inner() -> impl Iterator<Item = &'static str> {
    TEXT_CONFIGS.into_iter().chain(["thinker_config"])
}

/// The file in which ModelOpt writes its settings.
const MODELOPT: &str = "hf_quant_config.json";

/// The settings that a quantizer wrote.
pub(super) struct Settings {
    pub(super) method: &'static Method,
    file: PathBuf,
    field: String,
    map: Map<String, Value>,
}

impl Settings {
    /// The settings of the folder with this config.json; `None` if it has none.
    pub(super) fn find(folder: &Path, config: &Map<String, Value>) -> Result<Option<Self>> {
        let file = folder.join("config.json");
        let Some((field, value)) = field_of(config) else { return Self::of_modelopt(folder, None) };
        let Value::Object(map) = value else {
            return Err(Finding::new(&file, field).expected("an object").found(value).format());
        };
        let mut map = map.clone();
        // Some versions of compressed-tensors nest them one level deeper.
        if let Some(Value::Object(inner)) = map.get("quantization_config") {
            let mut inner = inner.clone();
            for (name, value) in map.iter().filter(|(name, _)| *name != "quantization_config") {
                inner.entry(name.clone()).or_insert_with(|| value.clone());
            }
            map = inner;
        }
        let named = map.get("quant_method").filter(|name| !is_off(name)).cloned();
        let implied = || {
            let flag = |name: &str| map.get(name) == Some(&Value::Bool(true));
            match () {
                () if flag("load_in_4bit") || flag("load_in_8bit") => Some("bitsandbytes"),
                () if map.contains_key("config_groups") => Some("compressed-tensors"),
                () if map.contains_key("quant_algo") => Some("modelopt"),
                () => None,
            }
        };
        let subject = format!("{field}.quant_method");
        let method = match &named {
            Some(name) => name.as_str().map(str::to_ascii_lowercase),
            None => implied().map(str::to_owned),
        };
        if method.is_none() && named.is_none() && folder.join(MODELOPT).is_file() {
            return Self::of_modelopt(folder, Some(map));
        }
        let found = method.as_deref().and_then(|name| METHODS.iter().find(|method| method.name == name));
        let Some(method) = found else {
            let known: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
            let (last, rest) = known.split_last().unwrap_or((&"", &[]));
            let finding = Finding::new(&file, subject).expected(format_args!("{} or {last}", rest.join(", ")));
            let found = named.map_or_else(|| "none".to_owned(), |name| name.to_string());
            let hint = "weights that are quantized in another way can't be read: take the model that they were made of";
            return Err(finding.found(found).hint(hint).unsupported());
        };
        let settings = Self { method, file, field, map };
        if method.name == "modelopt" && !settings.map.contains_key("quant_algo") {
            return Ok(Self::of_modelopt(folder, Some(settings.map.clone()))?.or(Some(settings)));
        }
        Ok(Some(settings))
    }

    /// The settings in ModelOpt's own file, which take precedence over config.json.
    fn of_modelopt(folder: &Path, config: Option<Map<String, Value>>) -> Result<Option<Self>> {
        let file = folder.join(MODELOPT);
        if !file.is_file() {
            return Ok(None);
        }
        let json = read_json_object(&file)?;
        let mut map = config.unwrap_or_default();
        if let Some(Value::Object(inner)) = json.get("quantization") {
            map.extend(inner.clone());
        }
        let producer = json.get("producer").and_then(|producer| producer.get("name")?.as_str());
        let name = producer.unwrap_or("modelopt").to_ascii_lowercase();
        let Some(method) = METHODS.iter().find(|method| method.name == name) else {
            let finding = Finding::new(&file, "producer.name").expected("modelopt").found(format!("{name:?}"));
            return Err(finding.hint("take the model that it was made of").unsupported());
        };
        // Without an algorithm, the file says that nothing is quantized.
        if map.get("quant_algo").is_none_or(is_off) {
            return Ok(None);
        }
        Ok(Some(Self { method, file, field: "quantization".to_owned(), map }))
    }

    /// A finding about the field `name`.
    pub(super) fn finding(&self, name: &str) -> Finding {
        Finding::new(&self.file, format!("{}.{name}", self.field))
    }

    /// The value of `name`, unless it is null.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// The text in `name`, in lower case.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let text = value.as_str().map(str::to_ascii_lowercase);
        text.map(Some).ok_or_else(|| self.finding(name).expected("a text").found(value).format())
    }

    /// The integer in `name`.
    pub(super) fn number(&self, name: &str) -> Result<Option<i64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_i64();
        number.map(Some).ok_or_else(|| self.finding(name).expected("a whole number").found(value).format())
    }

    /// The size of a group; `None` if one group covers all inputs.
    pub(super) fn group_size(&self) -> Result<Option<usize>> {
        match self.number("group_size")? {
            None | Some(-1) => Ok(None),
            Some(size @ 1..=0x7fff_ffff) => Ok(Some(size as usize)),
            Some(other) => Err(self.finding("group_size").expected("-1, or 1 to 2^31 - 1").found(other).format()),
        }
    }

    /// Parses the sizes of a block in `value`, the value of the field `name`.
    pub(super) fn block(&self, name: &str, value: &Value) -> Result<Vec<usize>> {
        let sizes = value.as_array().filter(|sizes| (1..=3).contains(&sizes.len()));
        let size = |size: &Value| size.as_u64().filter(|size| (1..=1 << 31).contains(size)).map(|size| size as usize);
        let block = sizes.and_then(|sizes| sizes.iter().map(size).collect::<Option<Vec<usize>>>());
        block.ok_or_else(|| self.finding(name).expected("sizes of a block, like [128, 128]").found(value).format())
    }
}

/// The path and value of the field with the settings.
fn field_of(config: &Map<String, Value>) -> Option<(String, &Value)> {
    let own = |config: &'_ Map<String, Value>| {
        FIELDS.iter().find(|name| config.get(**name).is_some_and(|v| !is_off(v))).copied()
    };
    if let Some(name) = own(config) {
        return Some((name.to_owned(), &config[name]));
    }
    inner().find_map(|inner| {
        let Some(Value::Object(map)) = config.get(inner) else { return None };
        if let Some(name) = own(map) {
            return Some((format!("{inner}.{name}"), &map[name]));
        }
        field_of(map).map(|(name, value)| (format!("{inner}.{name}"), value))
    })
}

/// Removes all such fields from config.json.
pub(super) fn forget(config: &mut Map<String, Value>) {
    for name in FIELDS {
        config.shift_remove(name);
    }
    for inner in inner() {
        if let Some(Value::Object(map)) = config.get_mut(inner) {
            forget(map);
        }
    }
}
