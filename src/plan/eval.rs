//! Evaluation: computes any range of rows of a planned tensor, as values or as output bytes. Values are f32; those of an
//! output of F64 are f64.

use std::borrow::Cow;
use std::ops::Range;

use super::number::Number;
use super::product::{Sink, product_rows};
use super::{Expr, Pick, PlannedTensor, Sums, scratch};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::kernel::Kernel;
use crate::quant;
use crate::source::{any_outlines, row_len, rows};

impl PlannedTensor {
    /// Encodes rows `rows` for the output: rounded to the output's type, little-endian.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] if a source, or the rounded result, has a NaN or an infinity.
    pub fn encode_rows(&self, rows: Range<usize>, scratch: &mut Vec<f32>, out: &mut Vec<u8>) -> Result<()> {
        let elems = rows.len() * self.row_len();
        let bytes = elems / self.dtype.block_elems() * self.dtype.block_bytes();
        self.check_values()?;
        if self.expr.raw_dtype() == Some(self.dtype) {
            out.clear();
            out.reserve(bytes);
            self.expr.copy_rows(rows, out);
            if quant::has_non_finite(self.dtype, out) {
                return Err(self.not_finite("a NaN or an infinity"));
            }
            return Ok(());
        }
        self.check_readable(&rows)?;
        if self.dtype == DType::F64 {
            let mut values = scratch::take::<f64>(elems);
            self.eval_finite(rows, &mut values)?;
            out.resize(bytes, 0);
            f64::encode(self.dtype, &values, out);
            scratch::give_back(values);
            return Ok(());
        }
        // Neither buffer is cleared first: every value in it is overwritten.
        scratch.resize(elems.max(scratch.len()), 0.0);
        let scratch = &mut scratch[..elems];
        self.eval_finite(rows.clone(), scratch)?;
        out.resize(bytes, 0);
        match &self.expr {
            Expr::Weighted { importance, .. } => self.encode_weighted(importance, rows.start, scratch, out),
            _ => quant::encode(self.dtype, scratch, out),
        }
        if quant::has_non_finite(self.dtype, out) {
            return Err(self.not_finite(&format!("a value too large for {}", self.dtype)));
        }
        Ok(())
    }

    /// Computes the values of rows `rows`, not rounded.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] if one is a NaN or an infinity.
    pub(super) fn eval_finite<T: Number>(&self, rows: Range<usize>, out: &mut [T]) -> Result<()> {
        self.expr.eval_rows(rows, out);
        match out.iter().fold(false, |bad, v| bad | !v.is_finite()) {
            true => Err(self.not_finite("a NaN or an infinity")),
            false => Ok(()),
        }
    }

    /// Encodes rows from `first` on. The errors of a row are weighted by the column importance of the row's matrix.
    fn encode_weighted(&self, importance: &[f32], first: usize, values: &[f32], out: &mut [u8]) {
        let row_len = self.row_len();
        let row_bytes = row_len / self.dtype.block_elems() * self.dtype.block_bytes();
        // Plan::check has ensured that the rows divide evenly into the matrices of `importance`.
        let kernel = Kernel::in_use();
        let rows_each = self.rows() * row_len / importance.len();
        for (i, (row, out)) in values.chunks_exact(row_len).zip(out.chunks_exact_mut(row_bytes)).enumerate() {
            let start = (first + i) / rows_each * row_len;
            quant::encode_row(self.dtype, row, Some(&importance[start..start + row_len]), out, kernel);
        }
    }

    /// Decodes encoded rows to f32. It is an error if a finite F64 is too large for f32.
    pub(super) fn decode(&self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        quant::decode(self.dtype, bytes, out);
        match out.iter().fold(false, |bad, v| bad | !v.is_finite()) {
            true => Err(self.not_finite("a value too large for F32")),
            false => Ok(()),
        }
    }

    /// Returns the bytes of rows `rows` in the source's memory map, if they can be written unchanged.
    pub(super) fn borrow_rows(&self, rows: Range<usize>) -> Option<Result<&[u8]>> {
        if self.expr.raw_dtype() != Some(self.dtype) {
            return None;
        }
        if let Err(missing) = self.check_values() {
            return Some(Err(missing));
        }
        let bytes = self.expr.borrow_rows(rows)?;
        Some(match quant::has_non_finite(self.dtype, bytes) {
            true => Err(self.not_finite("a NaN or an infinity")),
            false => Ok(bytes),
        })
    }

    /// Checks that the values of its sources are available: see [`crate::source::Source::check_values`].
    pub(super) fn check_values(&self) -> Result<()> {
        match any_outlines() {
            true => self.expr.sources().iter().try_for_each(|source| source.check_values()),
            false => Ok(()),
        }
    }

    /// Checks that rows `rows` can be read as values. This doesn't rely on [`super::Plan::check`], which accepts any
    /// type for values that are only copied.
    pub(super) fn check_readable(&self, rows: &Range<usize>) -> Result<()> {
        self.check_types()?;
        if self.expr.raw_dtype() == Some(self.dtype) && !quant::can_decode(self.dtype) {
            return Err(self.undecodable(self.dtype));
        }
        // A vector of blocks has no rows of whole blocks, but it can be cut between blocks.
        if let Expr::Take(tensor) = &self.expr {
            let block = tensor.info().dtype.block_elems();
            let cut = rows.start * self.row_len();
            if cut.is_multiple_of(block) && (rows.end * self.row_len()).is_multiple_of(block) {
                return Ok(());
            }
        }
        self.check_blocks()
    }

    /// Returns the error for a value that isn't finite. It names the source that has such a value. If no source has
    /// one, `found` describes the result.
    pub(super) fn not_finite(&self, found: &str) -> crate::Error {
        let sources = self.expr.sources();
        if let Some(source) = sources.iter().find(|source| source.has_non_finite()) {
            return Finding::new(source.path(), format!("tensor {:?}", source.info().name))
                .expected("finite numbers")
                .found("a NaN or an infinity")
                .not_finite();
        }
        let source = sources.first().map_or(self.name.as_str(), |t| t.info().name.as_str()).to_owned();
        Finding::new(self.expr.source_path(), format!("tensor {source:?}"))
            .expected("finite numbers")
            .found(self.expr.not_finite().unwrap_or(found))
            .not_finite()
    }
}

impl Expr {
    /// Returns the number of elements in one row.
    pub(super) fn row_len(&self) -> usize {
        match self {
            Expr::Take(tensor) => tensor.info().row_len(),
            Expr::Values { shape, .. }
            | Expr::Rows { shape, .. }
            | Expr::Reshape { shape, .. }
            | Expr::Packed { shape, .. } => row_len(shape),
            Expr::Transpose(of) => rows(&of.shape()),
            Expr::Columns { index, .. } => index.len(),
            Expr::Bits { of, .. }
            | Expr::AddConstant { of, .. }
            | Expr::Scale { of, .. }
            | Expr::Round { of, .. }
            | Expr::Add { of, .. }
            | Expr::Weighted { of, .. } => of.row_len(),
            Expr::Product { right, .. } => right.row_len(),
            Expr::Kronecker { left, right } => left.row_len() * right.row_len(),
            Expr::Map { of, .. } => of.first().map_or(0, Expr::row_len),
        }
    }

    /// Returns the source's own bytes of rows `rows`, if its memory map has them in one piece.
    fn borrow_rows(&self, rows: Range<usize>) -> Option<&[u8]> {
        match self {
            Expr::Take(tensor) => match tensor.rows(rows) {
                Cow::Borrowed(bytes) => Some(bytes),
                Cow::Owned(_) => None,
            },
            Expr::Rows { of, picks, .. } => {
                let mut found = picked(picks, rows);
                let (operand, rows) = found.next()?;
                if found.next().is_some() { None } else { of[operand].borrow_rows(rows) }
            }
            Expr::Reshape { of, shape } => {
                let (rows, elems) = reshaped(rows, shape, of);
                let all = rows.len() * of.row_len();
                of.borrow_rows(rows)
                    .map(|bytes| &bytes[bytes.len() * elems.start / all.max(1)..bytes.len() * elems.end / all.max(1)])
            }
            Expr::Bits { of, .. } | Expr::Weighted { of, .. } => of.borrow_rows(rows),
            _ => None,
        }
    }

    /// Appends the source's own bytes of rows `rows`. Only for expressions with a
    /// [`Expr::raw_dtype`].
    fn copy_rows(&self, rows: Range<usize>, out: &mut Vec<u8>) {
        match self {
            Expr::Take(tensor) => out.extend_from_slice(&tensor.rows(rows)),
            Expr::Rows { of, picks, .. } => {
                for (operand, rows) in picked(picks, rows) {
                    of[operand].copy_rows(rows, out);
                }
            }
            Expr::Reshape { of, shape } => {
                let (rows, elems) = reshaped(rows, shape, of);
                let all = (rows.len() * of.row_len()).max(1);
                let start = out.len();
                of.copy_rows(rows, out);
                let bytes = out.len() - start;
                out.truncate(start + bytes * elems.end / all);
                out.drain(start..start + bytes * elems.start / all);
            }
            Expr::Bits { of, .. } | Expr::Weighted { of, .. } => of.copy_rows(rows, out),
            Expr::Packed { parts, packing, .. } => packing.copy(parts, rows, out),
            Expr::Values { .. }
            | Expr::Columns { .. }
            | Expr::Transpose(_)
            | Expr::AddConstant { .. }
            | Expr::Scale { .. }
            | Expr::Round { .. }
            | Expr::Add { .. }
            | Expr::Product { .. }
            | Expr::Kronecker { .. }
            | Expr::Map { .. } => unreachable!("no bytes of its own: raw_dtype is None"),
        }
    }

    /// Writes the values of rows `rows` to `out`.
    pub(super) fn eval_rows<T: Number>(&self, rows: Range<usize>, out: &mut [T]) {
        match self {
            Expr::Take(tensor) => T::decode(tensor.info().dtype, &tensor.rows(rows), out),
            Expr::Values { values, shape } => {
                let row_len = row_len(shape);
                let values = &values[rows.start * row_len..rows.end * row_len];
                out.iter_mut().zip(values).for_each(|(out, value)| *out = T::from(*value));
            }
            Expr::Rows { of, picks, shape } => {
                let row_len = row_len(shape);
                if let Some((operand, window)) = scattered(of, picks, rows.clone()) {
                    let mut values = vec![T::default(); window.len() * row_len];
                    operand.eval_rows(window.clone(), &mut values);
                    let mut rest = out;
                    for (_, rows) in picked(picks, rows) {
                        let (here, after) = rest.split_at_mut(rows.len() * row_len);
                        here.copy_from_slice(&values[(rows.start - window.start) * row_len..][..here.len()]);
                        rest = after;
                    }
                    return;
                }
                let mut rest = out;
                for (operand, rows) in picked(picks, rows) {
                    let (here, after) = rest.split_at_mut(rows.len() * row_len);
                    of[operand].eval_rows(rows, here);
                    rest = after;
                }
            }
            Expr::Reshape { of, shape } => {
                let (rows, elems) = reshaped(rows, shape, of);
                let all = rows.len() * of.row_len();
                if elems == (0..all) {
                    return of.eval_rows(rows, out);
                }
                let mut values = vec![T::default(); all];
                of.eval_rows(rows, &mut values);
                out.copy_from_slice(&values[elems]);
            }
            Expr::Bits { of, dtype } => {
                let mut bytes = Vec::new();
                of.copy_rows(rows, &mut bytes);
                T::decode(*dtype, &bytes, out);
            }
            Expr::Transpose(of) => transpose(of, rows, out),
            Expr::Columns { of, index } => {
                let width = of.row_len();
                let mut values = vec![T::default(); rows.len() * width];
                of.eval_rows(rows, &mut values);
                for (out, values) in out.chunks_exact_mut(index.len().max(1)).zip(values.chunks_exact(width.max(1))) {
                    out.iter_mut().zip(index.iter()).for_each(|(out, &column)| *out = values[column as usize]);
                }
            }
            Expr::Packed { parts, packing, shape } => {
                T::fill(out, |out| packing.unpack(parts, rows, row_len(shape), out));
            }
            Expr::Weighted { of, .. } => of.eval_rows(rows, out),
            Expr::AddConstant { of, constant } => {
                of.eval_rows(rows, out);
                let constant = T::from(*constant);
                out.iter_mut().for_each(|v| *v += constant);
            }
            Expr::Scale { of, factor } => {
                of.eval_rows(rows, out);
                let factor = T::of(*factor);
                out.iter_mut().for_each(|v| *v *= factor);
            }
            Expr::Round { of, dtype } => {
                of.eval_rows(rows, out);
                let mut bytes = vec![0; out.len() / dtype.block_elems() * dtype.block_bytes()];
                T::encode(*dtype, out, &mut bytes);
                T::decode(*dtype, &bytes, out);
            }
            Expr::Add { of, delta } => match &**delta {
                Expr::Product { scale, left, right, sums } => {
                    let base = |rows: Range<usize>, out: &mut [T]| of.eval_rows(rows, out);
                    product((*scale, *sums), left, right, rows, out, Some(&base));
                }
                delta => {
                    of.eval_rows(rows.clone(), out);
                    let mut values = scratch::take(out.len());
                    delta.eval_rows(rows, &mut values);
                    out.iter_mut().zip(&values).for_each(|(w, delta)| *w += *delta);
                    scratch::give_back(values);
                }
            },
            Expr::Product { scale, left, right, sums } => product((*scale, *sums), left, right, rows, out, None),
            Expr::Kronecker { left, right } => kronecker(left, right, rows, out),
            Expr::Map { of, map } => {
                let Some((first, others)) = of.split_first() else { return };
                let Some(map) = T::form(&**map) else { unreachable!("check_types refuses maps without this form") };
                let values = |of: &Expr| {
                    let mut values = scratch::take(out.len());
                    of.eval_rows(rows.clone(), &mut values);
                    values
                };
                let others: Vec<Vec<T>> = others.iter().map(values).collect();
                first.eval_rows(rows.clone(), out);
                map.apply(rows, first.row_len(), &others, out);
                others.into_iter().for_each(scratch::give_back);
            }
        }
    }
}

/// How many values are computed at a time when a product is added to other values, so that they stay in the cache.
const BLOCK_ELEMS: usize = 1 << 15;

/// Writes the values of some rows.
type Rows<'a, T> = dyn Fn(Range<usize>, &mut [T]) + 'a;

/// Computes rows `rows` of an [`Expr::Product`]. With `base`, the product is added to the values that `base` writes.
fn product<T: Number>(
    (scale, sums): (f64, Sums),
    left: &Expr,
    right: &Expr,
    rows: Range<usize>,
    out: &mut [T],
    base: Option<&Rows<T>>,
) {
    let (k, cols) = (left.row_len(), right.row_len());
    let mut lefts = vec![T::default(); rows.len() * k];
    left.eval_rows(rows.clone(), &mut lefts);
    let mut rights = vec![T::default(); k * cols];
    right.eval_rows(0..k, &mut rights);
    let fused = sums.fused::<T>(crate::source::rows(&left.shape()), k, cols);
    let sink = if base.is_some() { Sink::Add } else { Sink::Set };
    let step = (BLOCK_ELEMS / cols.max(1)).max(4);
    for (i, out) in out.chunks_mut((step * cols).max(1)).enumerate() {
        let block = i * step..i * step + out.len() / cols;
        let here = rows.start + block.start..rows.start + block.end;
        if let Some(base) = base {
            base(here.clone(), out);
        }
        let lefts = &lefts[block.start * k..block.end * k];
        // The rows of the block that are summed with fused multiply-adds, and those that aren't.
        let split = fused.0.clamp(here.start, here.end) - here.start;
        let (first, last) = out.split_at_mut(split * cols);
        product_rows(&lefts[..split * k], &rights, k, fused.1, T::of(scale), sink, first);
        product_rows(&lefts[split * k..], &rights, k, 0, T::of(scale), sink, last);
    }
}

/// Computes rows `rows` of an [`Expr::Kronecker`], one row of `left` after another.
fn kronecker<T: Number>(left: &Expr, right: &Expr, rows: Range<usize>, out: &mut [T]) {
    let (height, width) = (crate::source::rows(&right.shape()), right.row_len());
    let mut factors = vec![T::default(); left.row_len()];
    let (mut row, mut rest) = (rows.start, out);
    while row < rows.end {
        let (above, first) = (row / height, row % height);
        let count = (height - first).min(rows.end - row);
        let mut values = vec![T::default(); count * width];
        left.eval_rows(above..above + 1, &mut factors);
        right.eval_rows(first..first + count, &mut values);
        let (here, after) = rest.split_at_mut(count * width * factors.len());
        for (out, values) in here.chunks_exact_mut(width * factors.len()).zip(values.chunks_exact(width)) {
            for (out, factor) in out.chunks_exact_mut(width).zip(&factors) {
                out.iter_mut().zip(values).for_each(|(out, value)| *out = *factor * *value);
            }
        }
        (row, rest) = (row + count, after);
    }
}

/// Returns the operands, and their rows, that make up rows `rows` of an [`Expr::Rows`].
fn picked(picks: &[Pick], rows: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut first = 0;
    picks.iter().filter_map(move |pick| {
        let here = first..first + pick.len;
        first = here.end;
        let start = rows.start.max(here.start);
        let end = rows.end.min(here.end);
        (start < end).then(|| (pick.of, pick.start + start - here.start..pick.start + end - here.start))
    })
}

/// Returns the operand, and its range of rows, to compute at once for rows `rows` of an [`Expr::Rows`]. This saves work
/// if all rows come from one operand, in another order but close together, and have to be computed. Piece by piece, a
/// product would decode its whole right side for each piece.
fn scattered<'a>(of: &'a [Expr], picks: &[Pick], rows: Range<usize>) -> Option<(&'a Expr, Range<usize>)> {
    let count = rows.len();
    let mut found = picked(picks, rows);
    let (operand, mut window) = found.next()?;
    let mut pieces = 1;
    for (other, rows) in found {
        if other != operand {
            return None;
        }
        window = window.start.min(rows.start)..window.end.max(rows.end);
        pieces += 1;
    }
    let computed = !matches!(of[operand], Expr::Take(_) | Expr::Values { .. });
    (pieces > 1 && computed && window.len() <= 2 * count).then_some((&of[operand], window))
}

/// Returns the operand's rows that contain rows `rows` of an [`Expr::Reshape`], and the range of their elements that
/// belongs to `rows`. This is all of them unless the operand's rows are longer.
fn reshaped(rows: Range<usize>, shape: &[usize], of: &Expr) -> (Range<usize>, Range<usize>) {
    let (ours, theirs) = (row_len(shape), of.row_len().max(1));
    let elems = rows.start * ours..rows.end * ours;
    let covering = elems.start / theirs..elems.end.div_ceil(theirs);
    let skipped = covering.start * theirs;
    (covering, elems.start - skipped..elems.end - skipped)
}

/// Writes rows `columns` of the transpose of `of`, which are columns of `of`. If `of` is a plain source tensor, only
/// these columns are decoded.
fn transpose<T: Number>(of: &Expr, columns: Range<usize>, out: &mut [T]) {
    let width = of.row_len();
    let height = out.len() / columns.len().max(1);
    let mut row = vec![T::default(); width];
    for r in 0..height {
        let wanted = match of {
            Expr::Take(tensor) if tensor.info().dtype.is_plain() => {
                let (dtype, size) = (tensor.info().dtype, tensor.info().dtype.block_bytes());
                let wanted = &mut row[..columns.len()];
                T::decode(dtype, &tensor.rows(r..r + 1)[columns.start * size..columns.end * size], wanted);
                &*wanted
            }
            _ => {
                of.eval_rows(r..r + 1, &mut row);
                &row[columns.clone()]
            }
        };
        for (c, value) in wanted.iter().enumerate() {
            out[c * height + r] = *value;
        }
    }
}

#[cfg(test)]
mod tests;
