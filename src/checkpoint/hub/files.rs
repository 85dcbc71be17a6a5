//! Which files of a repository a conversion needs.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::read_index;
use crate::formats::safetensors::SHARD_INDEX;

/// The index of PyTorch's shards.
pub(super) const BIN_INDEX: &str = "pytorch_model.bin.index.json";

/// Ends of names of files without weights: configs and tokenizers, templates, the model card.
const COMPANIONS: &[&str] = &[".json", ".txt", ".jinja", ".model"];

/// Whether `name` is a relative path that stays in its folder.
pub(super) fn is_plain(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    name.split('/').all(part) && !name.contains(['\\', ':']) && !name.contains(char::is_control)
}

/// Whether a name needs no escapes in a web address. All files that a conversion needs have such names.
fn is_simple(name: &str) -> bool {
    is_plain(name) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
}

/// The files to download before the weights, beginning with those that list the weight files.
pub(super) fn companions(names: &[String]) -> Vec<&str> {
    let wanted = |name: &&str| {
        let at_root = !name.contains('/') && !name.starts_with('.');
        let companion = at_root && (*name == "README.md" || COMPANIONS.iter().any(|end| name.ends_with(end)));
        // sentence-transformers keeps the pooling of a model in a folder of its own.
        let pooling = name.strip_suffix("/config.json").is_some_and(|folder| folder.ends_with("_Pooling"));
        is_simple(name) && (companion || pooling && name.matches('/').count() == 1)
    };
    names.iter().map(String::as_str).filter(wanted).collect()
}

/// The files that hold a repository's weights.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// Files by their names: one, shards without an index, or an adapter's.
    Files(Vec<String>),
    /// Shards that this index names.
    Indexed(&'static str),
    /// Only GGUF files, of which the user has to choose one.
    Gguf(Vec<String>),
}

/// The weights among `names`: safetensors, else PyTorch's, else GGUF.
pub(super) fn weights(names: &[String]) -> Weights {
    let has = |name: &str| names.iter().any(|other| other == name);
    let all = |fits: &dyn Fn(&str) -> bool| -> Vec<String> {
        let fits = |name: &&String| is_simple(name) && fits(name);
        names.iter().filter(fits).cloned().collect()
    };
    let at_root = |name: &str| !name.contains('/');
    let safetensors = |name: &str| at_root(name) && name.ends_with(".safetensors");
    // Mistral's own form of the same weights.
    let foreign = |name: &str| name.starts_with("consolidated");
    let adapter = |name: &str| name.starts_with("adapter_");
    let choices: [&dyn Fn(&str) -> bool; 5] = [
        &|name| safetensors(name) && name.starts_with("model"),
        &|name| safetensors(name) && !foreign(name),
        &|name| at_root(name) && name.ends_with(".bin") && name.starts_with("pytorch_model"),
        &|name| at_root(name) && name.ends_with(".bin") && adapter(name),
        &|name| name.ends_with(".safetensors") && at_root(name),
    ];
    if has(SHARD_INDEX) {
        return Weights::Indexed(SHARD_INDEX);
    }
    for (i, fits) in choices.iter().enumerate() {
        let found = all(fits);
        if found.is_empty() {
            continue;
        }
        if i == 2 && has(BIN_INDEX) {
            return Weights::Indexed(BIN_INDEX);
        }
        return Weights::Files(found);
    }
    Weights::Gguf(all(&|name| name.ends_with(".gguf")))
}

/// Takes `NAME-00001-of-00003.gguf` apart: the name without the part's number, and the number of parts.
fn split(name: &str) -> Option<(&str, &str)> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, of) = stem.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(part) && digits(of)).then_some((stem, of))
}

/// All parts, among `names`, of the split GGUF that `name` is a part of; only `name` where it isn't split.
pub(super) fn parts(name: &str, names: &[String]) -> Vec<String> {
    match split(name) {
        None => vec![name.to_owned()],
        whole => names.iter().filter(|other| split(other) == whole).cloned().collect(),
    }
}

/// How many parts the GGUF `name` has.
pub(super) fn part_count(name: &str) -> usize {
    split(name).and_then(|(_, of)| of.parse().ok()).unwrap_or(1)
}

/// Whether a snapshot has a config and all weights, so that it can be read without the hub.
pub(super) fn is_complete(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    let shards = |index: &str| {
        let named = read_index(&snapshot.join(index)).ok();
        named.is_some_and(|map| map.values().collect::<BTreeSet<_>>().into_iter().all(|shard| has(shard)))
    };
    let names: Vec<String> = std::fs::read_dir(snapshot)
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    let weighs = match weights(&names) {
        Weights::Indexed(index) => shards(index),
        Weights::Files(files) => files.iter().all(|name| has(name)),
        Weights::Gguf(_) => false,
    };
    weighs && (has("config.json") || has("adapter_config.json"))
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
    fn companions_are_what_a_conversion_reads() {
        let all = names(&[
            ".gitattributes",
            ".hidden.json",
            "1_Pooling/config.json",
            "README.md",
            "LICENSE",
            "chat_template.jinja",
            "config.json",
            "merges.txt",
            "model.safetensors.index.json",
            "onnx/config.json",
            "onnx/model.onnx",
            "model.safetensors",
            "tf_model.h5",
            "tokenizer.model",
            "odd name.json",
            "training_args.bin",
        ]);
        let expected = [
            "1_Pooling/config.json",
            "README.md",
            "chat_template.jinja",
            "config.json",
            "merges.txt",
            "model.safetensors.index.json",
            "tokenizer.model",
        ];
        assert_eq!(companions(&all), expected);
    }

    #[test]
    fn weights_are_taken_in_one_form_only() {
        let cases = [
            (
                names(&["model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"]),
                Weights::Indexed(SHARD_INDEX),
            ),
            (
                names(&["consolidated.safetensors", "model.safetensors", "pytorch_model.bin", "x/model.safetensors"]),
                Weights::Files(names(&["model.safetensors"])),
            ),
            (
                names(&["adapter_model.safetensors", "adapter_model.bin", "optimizer.bin"]),
                Weights::Files(names(&["adapter_model.safetensors"])),
            ),
            (names(&["pytorch_model-00001-of-00002.bin", BIN_INDEX, "x.gguf"]), Weights::Indexed(BIN_INDEX)),
            (names(&["pytorch_model.bin", "training_args.bin"]), Weights::Files(names(&["pytorch_model.bin"]))),
            (names(&["adapter_model.bin"]), Weights::Files(names(&["adapter_model.bin"]))),
            (names(&["a.gguf", "Q8/b.gguf", "README.md"]), Weights::Gguf(names(&["a.gguf", "Q8/b.gguf"]))),
            (names(&["README.md"]), Weights::Gguf(names(&[]))),
        ];
        for (all, expected) in cases {
            assert_eq!(weights(&all), expected, "{all:?}");
        }
    }

    #[test]
    fn a_split_file_is_all_its_parts() {
        let all = names(&["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf", "m-00001-of-00003.gguf", "m.gguf"]);
        assert_eq!(parts("q/m-00001-of-00002.gguf", &all), all[..2]);
        assert_eq!(parts("m.gguf", &all), ["m.gguf"]);
        assert_eq!(["m-00001-of-00003.gguf", "m.gguf", "m-1-of-3.gguf"].map(part_count), [3, 1, 1]);
    }
}
