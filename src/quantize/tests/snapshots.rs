//! Compares the types of all tensors of real models, for every file type, with the snapshots of
//! llama.cpp's own test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// A model and its types, from a file in `fixtures/quant/recipes`.
struct Snapshot {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Names of tensors that keep their type.
    kept: BTreeSet<String>,
    sections: Vec<Section>,
}

/// One file type: the base type, and the tensors that have other types.
struct Section {
    file_type: FileType,
    base: DType,
    others: BTreeMap<String, DType>,
}

/// The snapshots in `fixtures/quant/recipes`, or in the folder that an environment variable names.
fn snapshots() -> Vec<(PathBuf, Snapshot)> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quant/recipes");
    let folder = std::env::var_os("ATOMBANK_RECIPES").map_or(fixtures, PathBuf::from);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), read(&fs::read_to_string(path).unwrap()))).collect()
}

/// Parses a snapshot; the form is described in README.md next to the files.
fn read(text: &str) -> Snapshot {
    let mut lines = text.lines().filter(|line| !line.is_empty()).map(|line| line.split(' ').collect::<Vec<_>>());
    let first = lines.next().unwrap();
    let ["model", architecture, rest @ ..] = &first[..] else { panic!("{first:?}") };
    let [blocks, heads, kv_heads, experts] = rest else { panic!("{rest:?}") };
    let [blocks, heads, kv_heads, experts] = [blocks, heads, kv_heads, experts].map(|n| n.parse::<u32>().unwrap());
    let metadata = metadata(architecture, blocks, heads, kv_heads, experts);
    let (mut tensors, mut kept, mut sections) = (Vec::new(), BTreeSet::new(), Vec::<Section>::new());
    for line in lines {
        match &line[..] {
            [kind @ ("tensor" | "kept"), name, shape @ ..] => {
                let shape: Vec<usize> = shape.iter().map(|n| n.parse().unwrap()).collect();
                for block in 0..if name.contains('*') { blocks } else { 1 } {
                    tensors.push(tensor(of_block(name, block), DType::F32, &shape));
                    if *kind == "kept" {
                        kept.insert(of_block(name, block));
                    }
                }
            }
            [file_type, base] if file_type.starts_with('[') => sections.push(Section {
                file_type: file_type.trim_matches(['[', ']']).parse().unwrap(),
                base: dtype(base),
                others: BTreeMap::new(),
            }),
            [name, of, blocks @ ..] => {
                let others = &mut sections.last_mut().unwrap().others;
                for block in blocks.first().map_or(vec![0], |blocks| ranges(blocks)) {
                    assert_eq!(others.insert(of_block(name, block), dtype(of)), None, "{name} twice");
                }
            }
            _ => panic!("{line:?}"),
        }
    }
    Snapshot { metadata, tensors, kept, sections }
}

fn of_block(name: &str, block: u32) -> String {
    name.replace('*', &block.to_string())
}

/// Parses ranges: `0-2,5` is 0, 1, 2, 5.
fn ranges(text: &str) -> Vec<u32> {
    let range = |range: &str| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        from.parse::<u32>().unwrap()..=to.parse().unwrap()
    };
    text.split(',').flat_map(range).collect()
}

#[test]
fn every_tensor_has_the_type_that_llama_quantize_gives_it() {
    let mut checked = BTreeMap::new();
    for (path, mut snapshot) in snapshots() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // The order of tensors in the file must not matter.
        snapshot.tensors.reverse();
        for section in &mut snapshot.sections {
            assert_eq!(section.file_type.base(), Some(section.base));
            let recipe = Recipe::from(section.file_type);
            let types = recipe.types_if_importance(&snapshot.metadata, &snapshot.tensors, false).unwrap();
            for (tensor, chosen) in snapshot.tensors.iter().zip(types) {
                let chosen = chosen.unwrap();
                assert_eq!(chosen.name, tensor.name);
                let base = if snapshot.kept.contains(&tensor.name) { DType::F32 } else { section.base };
                let expected = section.others.remove(&tensor.name).unwrap_or(base);
                assert_eq!(chosen.dtype, expected, "{name} {} {}", section.file_type, tensor.name);
                *checked.entry(name.clone()).or_insert(0) += 1;
            }
            assert!(section.others.is_empty(), "{name} {}: {:?}", section.file_type, section.others.keys());
        }
        println!("{name}: {} file types, {} tensors", snapshot.sections.len(), snapshot.tensors.len());
    }
    if std::env::var_os("ATOMBANK_RECIPES").is_none() {
        let expected = [("meta-llama-3.1-70b-instruct", 724), ("qwen3-0.6b", 311), ("qwen3-14b", 443)];
        let expected = expected.map(|(name, tensors)| (name.to_owned(), 33 * tensors));
        assert_eq!(checked, BTreeMap::from(expected), "33 file types of three models");
    }
}
