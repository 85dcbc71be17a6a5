//! Keys and values of earlier tokens.

use candle_core::Tensor;

use crate::error::Result;

/// Cached keys and values of earlier tokens.
#[derive(Default)]
pub struct KvCache {
    layers: Vec<Cached>,
    /// The position of each cached key, by row.
    positions: Vec<Vec<u32>>,
}

/// Keys and values of one layer, `[B, capacity, kv_heads * head_dim]`, of which the first `len` are there.
struct Cached {
    k: Tensor,
    v: Tensor,
    len: usize,
}

/// The fewest tokens for which a cache has room.
const ROOM: usize = 64;

impl KvCache {
    /// Adds the positions of new keys, by row, and returns all.
    pub(super) fn with_positions(&mut self, new: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
        if self.positions.is_empty() {
            self.positions = new;
        } else {
            self.positions.iter_mut().zip(new).for_each(|(old, new)| old.extend(new));
        }
        self.positions.clone()
    }

    /// Adds keys and values, `[B, T, n]`, to those of layer `index`, and returns all.
    pub(super) fn with(&mut self, index: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let new = k.dim(1)?;
        if index == self.layers.len() {
            self.layers.push(Cached { k: k.clone(), v: v.clone(), len: new });
            return Ok((k.clone(), v.clone()));
        }
        let cached = &mut self.layers[index];
        let len = cached.len + new;
        if len > cached.k.dim(1)? {
            // Twice the room, so that most tokens copy nothing but themselves.
            let grown = |old: &Tensor| -> Result<Tensor> {
                let (rows, _, width) = old.dims3()?;
                let room = Tensor::zeros((rows, (2 * len).max(ROOM), width), old.dtype(), old.device())?;
                room.slice_set(&old.narrow(1, 0, cached.len)?.contiguous()?, 1, 0)?;
                Ok(room)
            };
            (cached.k, cached.v) = (grown(&cached.k)?, grown(&cached.v)?);
        }
        cached.k.slice_set(&k.contiguous()?, 1, cached.len)?;
        cached.v.slice_set(&v.contiguous()?, 1, cached.len)?;
        cached.len = len;
        Ok((cached.k.narrow(1, 0, len)?, cached.v.narrow(1, 0, len)?))
    }
}
