//! The values of tensors on the CPU, as slices, and tensors of values.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor};

/// A tensor's values, which nobody changes while this exists.
struct Values<G> {
    storage: G,
    range: Range<usize>,
}

impl<G: Deref<Target = Storage>> Deref for Values<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => &[],
        }
    }
}

/// The values of a contiguous f32 tensor on the CPU.
pub(super) fn values(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(on_cpu) = &*storage else { candle_core::bail!("a tensor on another device") };
    slice(on_cpu, layout)?;
    let (start, end) = layout.contiguous_offsets().unwrap_or_default();
    Ok(Values { storage, range: start..end })
}

/// A gradient, as the backward pass of an operation gives it.
pub(super) fn on_cpu(values: Vec<f32>, shape: &Shape) -> Result<Option<Tensor>> {
    Tensor::from_vec(values, shape, &Device::Cpu).map(Some)
}

/// The values of an operation's argument, which has to be contiguous f32.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("expected a contiguous f32 tensor"),
    }
}
