//! Chooses the files of a repository that a conversion needs.

use std::collections::BTreeMap;

use super::super::ADAPTER_CONFIG;
use super::super::shards::numbered;
/// The index of PyTorch's shards.
pub(super) use crate::formats::pytorch::SHARD_INDEX as BIN_INDEX;
use crate::formats::safetensors::SHARD_INDEX;

/// The endings of files without weights: configs, tokenizers and templates.
const COMPANIONS: &[&str] = &[".json", ".txt", ".jinja", ".model", ".tiktoken"];

/// The part before the version in the names of Mistral's SentencePiece models.
const VERSIONED: &str = ".model.v";

/// The folder of additional chat templates.
pub(super) const TEMPLATES: &str = "additional_chat_templates";

/// The files that a model usually has beside its weights, and that a conversion reads. If a cache lacks one of them,
/// the model may still have it: the program that filled the cache may not have needed it.
pub(super) const USUAL: &[&str] = &[
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "modules.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];
/// The same for an adapter.
pub(super) const USUAL_OF_ADAPTER: &[&str] = &["README.md"];

/// The names of weights that a cache may record as absent.
pub(super) const USUAL_WEIGHTS: &[&str] = &[
    ADAPTER_CONFIG,
    "adapter_model.bin",
    "adapter_model.safetensors",
    "model.safetensors",
    SHARD_INDEX,
    "pytorch_model.bin",
    BIN_INDEX,
];

/// Returns whether `name` is a relative path that stays in its folder.
pub(super) fn is_plain(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    name.split('/').all(part) && !name.contains(['\\', ':']) && !name.contains(char::is_control)
}

/// Returns whether a name leads out of its folder or is misleading. A hub that lists such a name can't be trusted.
/// Other odd names are ignored.
pub(super) fn leads_out(name: &str) -> bool {
    let outside = |name: &str| name.starts_with('/') || name.split('/').any(|part| part == "..");
    name.is_empty() || outside(name) || outside(&name.replace('\\', "/")) || name.contains('\0')
}

/// Returns the files to download before the weights.
pub(super) fn companions(names: &[String]) -> Vec<&str> {
    let wanted = |name: &&str| {
        let hidden = name.split('/').any(|part| part.starts_with('.'));
        // Indexes are downloaded together with their weights.
        let known = COMPANIONS.iter().any(|end| name.ends_with(end)) || name.contains(VERSIONED);
        let companion = known && !name.ends_with(".index.json");
        let wanted = match name.split_once('/') {
            None => *name == "README.md" || companion,
            Some((TEMPLATES, template)) => template.ends_with(".jinja") && !template.contains('/'),
            // sentence-transformers stores a model's pooling in a separate folder.
            Some((folder, file)) => folder.ends_with("_Pooling") && file == "config.json",
        };
        is_plain(name) && !hidden && wanted
    };
    names.iter().map(String::as_str).filter(wanted).collect()
}

/// The part of a model that a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Whatever the repository has: a model, an adapter, or both.
    Everything,
    /// The model, if the repository also has an adapter.
    Model,
    /// The adapter, if the repository also has a model.
    Adapter,
    /// The config and the tokenizer. Weights are only needed in a repository without a config, such as one with a GGUF.
    Vocabulary,
}

/// The files that hold weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Weights {
    /// Files with these names.
    Files(Vec<String>),
    /// The shards that this index lists.
    Indexed(&'static str),
    /// GGUF files, each with all its parts. The user has to choose one of them.
    Gguf(Vec<Vec<String>>),
}

/// Returns the weights among `names` that a command needs: of a model in one format, of an adapter, of both, or GGUF.
pub(super) fn weights(names: &[String], need: Need) -> Vec<Weights> {
    let has = |name: &str| names.iter().any(|other| other == name);
    let model = || model(names);
    let adapter = || adapter(names);
    let either =
        |found: Option<Weights>, other: &dyn Fn() -> Option<Weights>| found.or_else(other).into_iter().collect();
    let found: Vec<Weights> = match need {
        Need::Vocabulary if has("config.json") || has("params.json") => return Vec::new(),
        Need::Model => either(model(), &adapter),
        Need::Adapter => either(adapter(), &model),
        Need::Everything | Need::Vocabulary => model().into_iter().chain(adapter()).collect(),
    };
    match found.is_empty() {
        true => vec![Weights::Gguf(ggufs(names))],
        false => found,
    }
}

/// Returns a model's weights: safetensors first, then PyTorch's; a single file first, then the shards of an index, then
/// shards without an index. transformers uses this order, and so does the code that reads a folder.
pub(super) fn model(names: &[String]) -> Option<Weights> {
    let has = |name: &str| names.iter().any(|other| other == name);
    let forms = [("model", "safetensors", SHARD_INDEX), ("pytorch_model", "bin", BIN_INDEX)];
    for (stem, extension, index) in forms {
        let single = format!("{stem}.{extension}");
        if has(&single) {
            return Some(Weights::Files(vec![single]));
        }
        if has(index) {
            return Some(Weights::Indexed(index));
        }
        if let Some(shards) = whole_sets(names, stem, extension).into_iter().next() {
            return Some(Weights::Files(shards));
        }
    }
    if has(ADAPTER_CONFIG) {
        return None;
    }
    // Tensors under other names. Mistral's own format of the same weights comes last.
    let others = |foreign: bool| -> Vec<String> {
        let fits = |name: &&String| {
            let at_root = !name.contains('/') && name.ends_with(".safetensors") && !name.starts_with("adapter_");
            at_root && is_plain(name) && name.starts_with("consolidated") == foreign
        };
        names.iter().filter(fits).cloned().collect()
    };
    [others(false), others(true)].into_iter().find(|found| !found.is_empty()).map(Weights::Files)
}

/// Returns an adapter's weights.
pub(super) fn adapter(names: &[String]) -> Option<Weights> {
    // The last is that of mlx-lm.
    let mut found = ["adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"].into_iter();
    let found = found.find(|name| names.iter().any(|other| other == name));
    found.map(|name| Weights::Files(vec![name.to_owned()]))
}

/// Returns the complete sets of shards `STEM-00001-of-00003.EXTENSION` at the root.
fn whole_sets(names: &[String], stem: &str, extension: &str) -> Vec<Vec<String>> {
    let mut sets: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for name in names {
        let numbered = name.strip_suffix(extension).and_then(|rest| rest.strip_suffix('.')).and_then(numbered);
        if let Some((_, _, of)) = numbered.filter(|(found, _, _)| *found == stem) {
            sets.entry(of).or_default().push(name.clone());
        }
    }
    sets.into_iter().filter(|(of, set)| of.parse() == Ok(set.len())).map(|(_, set)| set).collect()
}

fn split(name: &str) -> Option<(&str, &str)> {
    numbered(name.strip_suffix(".gguf")?).map(|(stem, _, of)| (stem, of))
}

/// Returns all GGUF models among `names`, each with its parts. Image projectors and importance matrices are not models,
/// and only count if there is nothing else.
fn ggufs(names: &[String]) -> Vec<Vec<String>> {
    let all: Vec<&String> = names.iter().filter(|name| name.ends_with(".gguf") && is_plain(name)).collect();
    let beside = |name: &str| {
        let file = name.rsplit('/').next().unwrap_or_default();
        file.starts_with("mmproj") || file.contains("imatrix")
    };
    let models: Vec<&String> = all.iter().copied().filter(|name| !beside(name)).collect();
    let mut found: Vec<Vec<String>> = Vec::new();
    for name in if models.is_empty() { all } else { models } {
        let same =
            |set: &&mut Vec<String>| split(name).is_some() && set.first().is_some_and(|f| split(f) == split(name));
        match found.iter_mut().find(same) {
            Some(set) => set.push(name.clone()),
            None => found.push(vec![name.clone()]),
        }
    }
    found.iter_mut().for_each(|set| set.sort_unstable());
    found
}

/// Returns all parts, among `names`, of the split GGUF that `name` belongs to; only `name` if it isn't split.
pub(super) fn parts(name: &str, names: &[String]) -> Vec<String> {
    match split(name) {
        None => vec![name.to_owned()],
        whole => names.iter().filter(|other| split(other) == whole).cloned().collect(),
    }
}

/// Returns the number of parts of the GGUF `name`.
pub(super) fn part_count(name: &str) -> usize {
    split(name).and_then(|(_, of)| of.parse().ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_that_leave_their_folder_are_not_plain() {
        for name in ["a", "a/b.json", "model-00001-of-00002.safetensors", "ünïcode"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "a\\b", "C:x", "a\nb"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }

    #[test]
    fn names_that_mislead_are_told_from_odd_ones() {
        for name in ["", "..", "../x", "a/../../b", "/etc/passwd", "..\\x", "\\x", "a\0b"] {
            assert!(leads_out(name), "{name:?}");
        }
        for name in ["a", "a b.json", "a:b", "a\\b", "a..b", "x/..y/z"] {
            assert!(!leads_out(name), "{name:?}");
        }
    }

    #[test]
    fn companions_are_what_a_conversion_reads() {
        let all = names(&[
            ".gitattributes",
            ".hidden.json",
            "1_Pooling/config.json",
            "README.md",
            "LICENSE",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/more/x.jinja",
            "chat_template.jinja",
            "config.json",
            "merges.txt",
            "model.fp16.safetensors.index.json",
            "model.safetensors.index.json",
            "odd name.json",
            "onnx/config.json",
            "onnx/model.onnx",
            "model.safetensors",
            "tf_model.h5",
            "qwen.tiktoken",
            "tokenizer.model",
            "tokenizer.model.v3",
            "training_args.bin",
        ]);
        let expected = [
            "1_Pooling/config.json",
            "README.md",
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
            "config.json",
            "merges.txt",
            "odd name.json",
            "qwen.tiktoken",
            "tokenizer.model",
            "tokenizer.model.v3",
        ];
        assert_eq!(companions(&all), expected);
    }

    #[test]
    fn weights_are_taken_in_one_form_only() {
        let files = |all: &[&str]| vec![Weights::Files(names(all))];
        let cases = [
            (
                names(&["model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"]),
                vec![Weights::Indexed(SHARD_INDEX)],
            ),
            (
                names(&["consolidated.safetensors", "model.safetensors", "pytorch_model.bin", "x/model.safetensors"]),
                files(&["model.safetensors"]),
            ),
            (
                names(&["model.fp16.safetensors", "model.safetensors", "model.safetensors.index.json"]),
                files(&["model.safetensors"]),
            ),
            (
                names(&[
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                    "model-00001-of-00003.safetensors",
                ]),
                files(&["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
            ),
            (
                names(&["adapter_model.safetensors", "adapter_model.bin", "optimizer.bin"]),
                files(&["adapter_model.safetensors"]),
            ),
            (names(&["pytorch_model-00001-of-00002.bin", BIN_INDEX, "x.gguf"]), vec![Weights::Indexed(BIN_INDEX)]),
            (names(&["pytorch_model.bin", "training_args.bin"]), files(&["pytorch_model.bin"])),
            (names(&["adapter_model.bin"]), files(&["adapter_model.bin"])),
            (names(&["consolidated.safetensors"]), files(&["consolidated.safetensors"])),
            (names(&["consolidated.safetensors", "flux_lora.safetensors"]), files(&["flux_lora.safetensors"])),
            (
                names(&["a.gguf", "Q8/b.gguf", "README.md", "mmproj-a.gguf"]),
                vec![Weights::Gguf(vec![names(&["a.gguf"]), names(&["Q8/b.gguf"])])],
            ),
            (
                names(&["b-00002-of-00002.gguf", "b-00001-of-00002.gguf"]),
                vec![Weights::Gguf(vec![names(&["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"])])],
            ),
            (names(&["README.md"]), vec![Weights::Gguf(vec![])]),
        ];
        for (all, expected) in cases {
            assert_eq!(weights(&all, Need::Everything), expected, "{all:?}");
        }
    }

    #[test]
    fn of_a_model_and_an_adapter_a_command_gets_what_it_needs() {
        let all = names(&["config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors"]);
        let model = Weights::Files(names(&["model.safetensors"]));
        let adapter = Weights::Files(names(&["adapter_model.safetensors"]));
        assert_eq!(weights(&all, Need::Everything), [model.clone(), adapter.clone()]);
        assert_eq!(weights(&all, Need::Model), [model]);
        assert_eq!(weights(&all, Need::Adapter), [adapter]);
        assert_eq!(weights(&all, Need::Vocabulary), []);
        // A GGUF is its vocabulary's only file.
        let gguf = names(&["a.gguf"]);
        assert_eq!(weights(&gguf, Need::Vocabulary), [Weights::Gguf(vec![gguf.clone()])]);
    }

    #[test]
    fn a_split_file_is_all_its_parts() {
        let all = names(&["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf", "m-00001-of-00003.gguf", "m.gguf"]);
        assert_eq!(parts("q/m-00001-of-00002.gguf", &all), all[..2]);
        assert_eq!(parts("m.gguf", &all), ["m.gguf"]);
        assert_eq!(["m-00001-of-00003.gguf", "m.gguf", "m-1-of-3.gguf"].map(part_count), [3, 1, 1]);
    }
}
