//! Expressions with the same values in other places: dimensions cut, exchanged, joined and seen as others.

use std::sync::Arc;

use crate::plan::Expr;

/// For every index of a dimension that is seen as `sizes` and put in the order `order`, the index where it comes from.
pub(super) fn ordered(sizes: &[usize], order: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; sizes.len()];
    for dim in (0..sizes.len().saturating_sub(1)).rev() {
        strides[dim] = strides[dim + 1] * sizes[dim + 1];
    }
    let total: usize = sizes.iter().product();
    (0..total)
        .map(|mut position| {
            let mut from = 0;
            for &dim in order.iter().rev() {
                from += position % sizes[dim] * strides[dim];
                position /= sizes[dim];
            }
            from
        })
        .collect()
}

/// Indices of a dimension.
pub(crate) fn indexed(of: Expr, dim: usize, index: &[usize]) -> Expr {
    let shape = of.shape();
    if shape[dim] == index.len() && index.iter().copied().eq(0..index.len()) {
        return of;
    }
    let mut to = shape.clone();
    to[dim] = index.len();
    if dim + 1 == shape.len() && dim > 0 {
        return Expr::Columns { of: Box::new(of), index: index.iter().map(|column| *column as u32).collect() };
    }
    let inner: usize = match shape.len() {
        0 | 1 => 1,
        len => shape[dim + 1..len - 1].iter().product(),
    };
    let outer: usize = shape[..dim].iter().product();
    let picks = (0..outer).flat_map(|above| {
        let shape = &shape;
        index.iter().map(move |&row| ((above * shape[dim] + row) * inner, inner))
    });
    Expr::picked(of, picks, to)
}

/// All dimensions in another order.
pub(crate) fn permuted(of: Expr, order: &[usize]) -> Expr {
    let shape = of.shape();
    let rank = shape.len();
    if order.iter().copied().eq(0..rank) {
        return of;
    }
    // Blocks that GGUF has, too, are rows in this order.
    let is_swap = rank > 1 && order[..rank - 2].iter().copied().eq(0..rank - 2) && order[rank - 1] == rank - 2;
    if let Some(turned) = of.turned().filter(|turned| is_swap && turned.raw_dtype().is_some()) {
        return turned;
    }
    let to: Vec<usize> = order.iter().map(|dim| shape[*dim]).collect();
    let last = order[rank - 1];
    // First the dimension that becomes the last: matrices of it and all that follow it are transposed.
    let (of, dims) = if last + 1 == rank {
        (of, (0..rank).collect::<Vec<_>>())
    } else {
        let (outer, height) = (shape[..last].iter().product::<usize>(), shape[last]);
        let width: usize = shape[last + 1..].iter().product();
        let flat = reshaped(of, vec![outer * height, width]);
        let turned = (0..outer).map(|matrix| {
            Expr::Transpose(Box::new(Expr::slice(flat.clone(), matrix * height, height, vec![height, width])))
        });
        let turned = Expr::concat(turned.collect(), vec![outer * width, height]);
        let dims: Vec<usize> = (0..rank).filter(|dim| *dim != last).chain([last]).collect();
        let shape = dims.iter().map(|dim| shape[*dim]).collect();
        (reshaped(turned, shape), dims)
    };
    // Then the others, row by row.
    let sizes: Vec<usize> = dims[..rank - 1].iter().map(|dim| shape[*dim]).collect();
    let places: Vec<usize> =
        order[..rank - 1].iter().map(|dim| dims.iter().position(|known| known == dim).unwrap_or_default()).collect();
    if places.iter().copied().eq(0..rank - 1) {
        return reshaped(of, to);
    }
    let rows = ordered(&sizes, &places);
    Expr::picked(of, rows.into_iter().map(|row| (row, 1)), to)
}

/// The same values in another shape.
pub(crate) fn reshaped(of: Expr, to: Vec<usize>) -> Expr {
    let from = of.shape();
    if from == to {
        return of;
    }
    let (ours, theirs) = (crate::source::row_len(&from).max(1), crate::source::row_len(&to).max(1));
    if ours.is_multiple_of(theirs) || theirs.is_multiple_of(ours) {
        return Expr::Reshape { of: Box::new(of), shape: to };
    }
    // Rows of neither shape divide into rows of the other: by way of single values.
    let whole: usize = from.iter().product();
    let flat = Expr::Reshape { of: Box::new(of), shape: vec![whole, 1] };
    Expr::Reshape { of: Box::new(flat), shape: to }
}

/// Tensors joined along a dimension.
pub(crate) fn joined(of: Vec<Expr>, dim: usize) -> Expr {
    if of.len() == 1 {
        return of.into_iter().next().unwrap_or(Expr::Values { shape: Vec::new(), values: Arc::from([]) });
    }
    let shapes: Vec<Vec<usize>> = of.iter().map(Expr::shape).collect();
    let mut to = shapes[0].clone();
    to[dim] = shapes.iter().map(|shape| shape[dim]).sum();
    if dim == 0 {
        return Expr::concat(of, to);
    }
    if dim + 1 == to.len() {
        // The columns of several matrices: their transposes' rows.
        let rank = to.len();
        let order: Vec<usize> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
        let turned: Vec<Expr> = of.into_iter().map(|of| permuted(of, &order)).collect();
        return permuted(joined(turned, dim - 1), &order);
    }
    let (outer, last): (usize, usize) = (to[..dim].iter().product(), to.len() - 1);
    let inner = |shape: &[usize]| shape[dim..last].iter().product::<usize>();
    let picks: Vec<(usize, usize, usize)> = (0..outer)
        .flat_map(|above| {
            let part = |(part, shape): (usize, &Vec<usize>)| (part, above * inner(shape), inner(shape));
            shapes.iter().enumerate().map(part).collect::<Vec<_>>()
        })
        .collect();
    Expr::picked_of(of, picks, to)
}
