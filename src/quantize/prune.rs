//! `--prune-layers`: removes blocks and renumbers the others.
//!
//! llama-quantize prunes even if the result is unusable. Refused here are: layers that the model doesn't have, all
//! layers, models with gaps between their blocks or with blocks that aren't called `blk.N.` (llama-quantize numbers
//! those of T5 out of order), and keys with one value for each block, whose length llama-quantize doesn't adjust.
//!
//! Reference: llama.cpp `src/llama-quant.cpp` (`remap_layer`) and `tools/quantize/quantize.cpp`
//! (`parse_layer_prune`).

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::names::block_of;
use crate::error::{Finding, Result};
use crate::formats::gguf::{Metadata, Value};
use crate::source::TensorInfo;

const OPTION: &str = "prune_layers";

/// An array with a number for each part of a position, not for each block.
const POSITIONS: &str = ".rope.dimension_sections";

/// Parses numbers of layers: `3,4,5`.
///
/// # Errors
/// [`crate::Error::Setting`] for any other text.
pub fn parse_layers(text: &str) -> Result<BTreeSet<usize>> {
    let number = |number: &str| {
        number.parse().map_err(|_| {
            let finding = Finding::new("", format!("{OPTION}: {text}"))
                .expected("numbers of layers with commas between, such as 3,4,5");
            finding.found(format_args!("{number:?}")).setting()
        })
    };
    text.split(',').map(number).collect()
}

/// The pruning of one model.
pub(super) struct Pruning<'a> {
    layers: &'a BTreeSet<usize>,
}

impl<'a> Pruning<'a> {
    /// # Errors
    /// [`crate::Error::Setting`], [`crate::Error::Mismatch`] or [`crate::Error::Unsupported`] if the result wouldn't be
    /// a valid model: see above.
    pub fn new(layers: &'a BTreeSet<usize>, metadata: &Metadata, tensors: &[TensorInfo]) -> Result<Self> {
        if layers.is_empty() {
            return Ok(Self { layers });
        }
        let key = block_count_key(metadata)?;
        let count = metadata.u32(&key)? as usize;
        let wrong = || Finding::new(metadata.file(), OPTION);
        if let Some(beyond) = layers.range(count..).next() {
            return Err(wrong().expected(format_args!("layers below {count}")).found(beyond).setting());
        }
        if layers.len() == count {
            return Err(wrong().expected("a layer that is left").found("none").setting());
        }
        let elsewhere = |tensor: &&TensorInfo| tensor.name.contains(".blk.");
        if let Some(tensor) = tensors.iter().find(elsewhere) {
            let expected = "blocks called blk.N., in a model whose layers are pruned";
            return Err(wrong().expected(expected).found(format_args!("{:?}", tensor.name)).unsupported());
        }
        let blocks: BTreeSet<usize> = tensors.iter().filter_map(|tensor| block_of(&tensor.name)).collect();
        if !blocks.iter().copied().eq(0..count) {
            let expected = format!("tensors of each of the {count} blocks that {key} counts");
            let found = format!("of {}, up to {}", blocks.len(), blocks.last().copied().unwrap_or(0));
            return Err(wrong().expected(expected).found(found).mismatch());
        }
        let by_block = |(key, value): &(&str, &Value)| {
            matches!(value, Value::Array(array) if array.len() == count) && !key.ends_with(POSITIONS)
        };
        let prefix = key.trim_end_matches("block_count");
        if let Some((key, value)) = metadata.iter().filter(|(key, _)| key.starts_with(prefix)).find(by_block) {
            let finding = metadata.finding(key).expected(format_args!("one value for all blocks, for `{OPTION}`"));
            return Err(finding.found(format_args!("{value}, one for each")).unsupported());
        }
        Ok(Self { layers })
    }

    /// The new name of a tensor; `None` for those that are removed.
    pub fn rename<'n>(&self, name: &'n str) -> Option<Cow<'n, str>> {
        let Some(block) = block_of(name).filter(|_| !self.layers.is_empty()) else {
            return Some(Cow::Borrowed(name));
        };
        if self.layers.contains(&block) {
            return None;
        }
        let gone = self.layers.range(..block).count();
        let rest = name.trim_start_matches("blk.").trim_start_matches(|c: char| c.is_ascii_digit());
        Some(if gone == 0 { Cow::Borrowed(name) } else { Cow::Owned(format!("blk.{}{rest}", block - gone)) })
    }
}

/// Sets the number of blocks to the remaining number, as the last key.
pub(super) fn write_block_count(layers: &BTreeSet<usize>, metadata: &mut Metadata) -> Result<()> {
    if layers.is_empty() {
        return Ok(());
    }
    let key = block_count_key(metadata)?;
    let count = metadata.u32(&key)?;
    let gone = layers.range(..count as usize).count() as u32;
    metadata.remove(&key);
    metadata.insert(key, count - gone);
    Ok(())
}

fn block_count_key(metadata: &Metadata) -> Result<String> {
    Ok(format!("{}.block_count", metadata.text("general.architecture")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::formats::gguf::Array;

    fn model(blocks: u32) -> (Metadata, Vec<TensorInfo>) {
        let mut metadata = Metadata::new("m.gguf");
        metadata.insert("general.architecture", "llama");
        metadata.insert("llama.block_count", blocks);
        metadata.insert("llama.rope.dimension_sections", Array::I32(vec![0; blocks as usize]));
        let tensor = |name: String| TensorInfo { name, dtype: DType::F32, shape: vec![8] };
        let tensors = (0..blocks).map(|block| tensor(format!("blk.{block}.attn_norm.weight")));
        (metadata, tensors.chain([tensor("output_norm.weight".to_owned())]).collect())
    }

    #[test]
    fn the_blocks_that_are_left_close_up() {
        let (metadata, tensors) = model(12);
        let layers = parse_layers("3,10,0,3").unwrap();
        let pruning = Pruning::new(&layers, &metadata, &tensors).unwrap();
        let renamed = |block: usize| pruning.rename(&tensors[block].name).map(Cow::into_owned);
        let numbers: Vec<Option<usize>> = (0..12).map(|b| renamed(b).and_then(|name| block_of(&name))).collect();
        let expected = "- 0 1 - 2 3 4 5 6 7 - 8".split(' ').map(|n| n.parse().ok()).collect::<Vec<Option<usize>>>();
        assert_eq!(numbers, expected);
        assert_eq!(renamed(11).as_deref(), Some("blk.8.attn_norm.weight"));
        assert_eq!(renamed(12).as_deref(), Some("output_norm.weight"));
        let mut after = metadata.clone();
        write_block_count(&layers, &mut after).unwrap();
        assert_eq!(after.iter().last().map(|(key, _)| key), Some("llama.block_count"));
        assert_eq!(after.u32("llama.block_count").unwrap(), 9);
    }

    #[test]
    fn nothing_pruned_changes_nothing() {
        let mut metadata = Metadata::new("adapter.gguf");
        let layers = BTreeSet::new();
        assert_eq!(Pruning::new(&layers, &metadata, &[]).unwrap().rename("blk.007.x").as_deref(), Some("blk.007.x"));
        write_block_count(&layers, &mut metadata).unwrap();
        assert!(metadata.is_empty());
    }

    #[test]
    fn what_would_be_no_model_is_refused() {
        let refused = |layers: &str, change: &dyn Fn(&mut Metadata, &mut Vec<TensorInfo>)| {
            let (mut metadata, mut tensors) = model(3);
            change(&mut metadata, &mut tensors);
            let layers = parse_layers(layers).unwrap();
            Pruning::new(&layers, &metadata, &tensors).err().expect("a refusal").to_string()
        };
        let same = |_: &mut Metadata, _: &mut Vec<TensorInfo>| {};
        assert_eq!(refused("1,3", &same), "m.gguf: prune_layers: expected layers below 3, found 3");
        assert_eq!(refused("0,1,2", &same), "m.gguf: prune_layers: expected a layer that is left, found none");
        let gap = refused("0", &|_, tensors| drop(tensors.remove(1)));
        assert!(gap.contains("each of the 3 blocks that llama.block_count counts, found of 2, up to 2"), "{gap}");
        let t5 = refused("0", &|_, tensors| tensors[0].name.insert_str(0, "enc."));
        assert!(t5.contains("blocks called blk.N."), "{t5}");
        let arrays = refused("0", &|metadata, _| {
            metadata.insert("llama.attention.head_count_kv", Array::U32(vec![8, 4, 8]));
        });
        assert!(arrays.contains("key \"llama.attention.head_count_kv\": expected one value for all"), "{arrays}");
    }

    #[test]
    fn what_is_no_list_is_named() {
        for text in ["", "1,", "1;2", "-1", "1,x", "3-5", "99999999999999999999"] {
            let message = parse_layers(text).unwrap_err().to_string();
            assert!(message.contains("prune_layers: ") && message.contains("expected numbers of layers"), "{message}");
        }
    }
}
