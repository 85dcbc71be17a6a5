//! The exchange of gradients and losses between the processes of a run.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

use super::{Gradients, Ranks};
use crate::error::Result;
use crate::model::hooks::to_host;

/// The gradients of every rank that has some, in the order of ranks. All ranks have the same `vars`.
pub(super) fn exchanged(ranks: &Ranks, own: Option<Gradients>, vars: &BTreeMap<String, Var>) -> Result<Vec<Gradients>> {
    if ranks.size() == 1 {
        return Ok(own.into_iter().collect());
    }
    let all = ranks.gathered(&packed(own.as_ref(), vars)?);
    all.iter().filter_map(|bytes| unpacked(bytes, vars).transpose()).collect()
}

/// Whether there are gradients, the loss, and for every variable whether it has a gradient, and its values: as many bytes
/// on all ranks.
fn packed(own: Option<&Gradients>, vars: &BTreeMap<String, Var>) -> Result<Vec<u8>> {
    let mut bytes = vec![u8::from(own.is_some())];
    bytes.extend(own.map_or(0.0, |own| own.loss).to_le_bytes());
    for (name, var) in vars {
        match own.and_then(|own| own.by_name.get(name)) {
            Some(gradient) => {
                bytes.push(1);
                to_host(gradient)?.values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
            }
            None => {
                bytes.push(0);
                bytes.resize(bytes.len() + 4 * var.elem_count(), 0);
            }
        }
    }
    Ok(bytes)
}

fn unpacked(bytes: &[u8], vars: &BTreeMap<String, Var>) -> Result<Option<Gradients>> {
    let mut rest = bytes;
    // All ranks run the same program over the same variables, so the sizes are right.
    let mut take = |count: usize| {
        let (taken, left) = rest.split_at(count.min(rest.len()));
        rest = left;
        taken
    };
    if take(1) == [0] {
        return Ok(None);
    }
    let loss = f64::from_le_bytes(take(8).try_into().unwrap_or_default());
    let mut by_name = BTreeMap::new();
    for (name, var) in vars {
        let has_gradient = take(1) == [1];
        let values = take(4 * var.elem_count());
        if has_gradient {
            let values: Vec<f32> = values.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
            by_name.insert(name.clone(), Tensor::from_vec(values, var.shape(), var.device())?);
        }
    }
    Ok(Some(Gradients { loss, by_name }))
}

/// The losses of parts that were dealt out in turns, in the order of the parts. This rank has `own`, of `count` in all.
pub(super) fn dealt_losses(ranks: &Ranks, own: &[f64], count: usize) -> Vec<f64> {
    if ranks.size() == 1 {
        return own.to_vec();
    }
    let mut bytes: Vec<u8> = own.iter().flat_map(|loss| loss.to_le_bytes()).collect();
    bytes.resize(8 * count.div_ceil(ranks.size()), 0);
    let all = ranks.gathered(&bytes);
    let loss = |part: usize| {
        let of_rank = all[part % ranks.size()].as_chunks().0;
        f64::from_le_bytes(of_rank[part / ranks.size()])
    };
    (0..count).map(loss).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn gradients_come_back_with_the_same_bits_and_none_stays_none() {
        let var = |values: &[f32]| Var::new(values, &Device::Cpu).unwrap();
        let vars = BTreeMap::from([("a".to_owned(), var(&[1.0, 2.0])), ("b".to_owned(), var(&[3.0]))]);
        let gradient = Tensor::new(&[f32::MIN_POSITIVE, -0.0], &Device::Cpu).unwrap();
        let own = Gradients { loss: 0.1, by_name: BTreeMap::from([("a".to_owned(), gradient)]) };
        let bytes = packed(Some(&own), &vars).unwrap();
        assert_eq!(bytes.len(), packed(None, &vars).unwrap().len());
        let found = unpacked(&bytes, &vars).unwrap().unwrap();
        assert_eq!((found.loss, found.by_name.len()), (0.1, 1));
        let bits = |gradients: &Gradients| -> Vec<u32> {
            gradients.by_name["a"].to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
        };
        assert_eq!(bits(&found), bits(&own));
        assert!(unpacked(&packed(None, &vars).unwrap(), &vars).unwrap().is_none());
    }
}
