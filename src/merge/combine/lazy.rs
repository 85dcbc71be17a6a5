//! Functions of rows that have to see whole tensors first: how large the kept values are, what angle two
//! models have.
//!
//! What they learn of a tensor is a handful of numbers. It is learned once, by going through the tensor's
//! rows, on the thread that first needs it and without help of others: so no thread that waits for it can
//! be the one that has to make it.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::svd::Cut;
use crate::error::{Error, Result};
use crate::merge::Truncation;
use crate::plan::{Expr, RowMap};

/// Makes a function of rows of what it sees in whole tensors.
pub(super) trait Measure: fmt::Debug + Send + Sync {
    /// The function for the tensors `of`. Works on the calling thread alone.
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>>;
}

/// A function of rows that is made when it is first needed.
#[derive(Debug)]
pub(super) struct Lazy {
    of: Vec<Expr>,
    measure: Box<dyn Measure>,
    made: OnceLock<Option<Arc<dyn RowMap>>>,
}

impl Lazy {
    fn get(&self) -> (Option<&Arc<dyn RowMap>>, Option<Error>) {
        let mut error = None;
        let made = self.made.get_or_init(|| match self.measure.measure(&self.of) {
            Ok(map) => Some(map),
            Err(e) => {
                error = Some(e);
                None
            }
        });
        (made.as_ref(), error)
    }
}

impl RowMap for Lazy {
    fn apply(&self, rows: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        match self.get().0 {
            Some(map) => map.apply(rows, row_len, others, out),
            // The executor refuses these. `Combined::measure` says more.
            None => out.fill(f32::NAN),
        }
    }
}

/// Something combined. What it needs to know of whole tensors is learned by [`Combined::measure`], or
/// tensor by tensor where rows are first asked for.
#[derive(Debug)]
pub struct Combined<T> {
    /// What was made.
    pub result: T,
    pending: Vec<Arc<Lazy>>,
    /// What was cut to a rank, by the weight's name.
    cuts: Vec<(String, Arc<Cut>)>,
}

impl<T> Combined<T> {
    pub(super) fn new(result: T, pending: Pending) -> Self {
        Self { result, pending: pending.0, cuts: Vec::new() }
    }

    pub(super) fn with_cuts(self, cuts: Vec<(String, Arc<Cut>)>) -> Self {
        Self { cuts, ..self }
    }

    /// What was lost of each module that was cut to a rank, before its factors are rounded to their type.
    /// Takes the singular values of those that are not measured yet.
    ///
    /// # Errors
    /// As [`Combined::measure`].
    pub fn truncations(&self) -> Result<Vec<Truncation>> {
        self.cuts.par_iter().map(|(name, cut)| cut.truncation(name)).collect()
    }

    /// How many tensors have to be seen whole.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Goes through all tensors that have to be seen whole, several at a time on rayon's current pool, and
    /// calls `done` after each. Where this is not called the executor does it, with less to do at a time
    /// and less to say about what is wrong.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for a NaN or an infinity in a source, [`Error::Io`].
    pub fn measure(&self, done: &(dyn Fn() + Sync)) -> Result<()> {
        self.pending.par_iter().try_for_each(|lazy| {
            let result = lazy.get().1.map_or(Ok(()), Err);
            done();
            result
        })
    }
}

/// The functions that are still to be made.
#[derive(Debug, Default)]
pub(super) struct Pending(Vec<Arc<Lazy>>);

impl Pending {
    /// What the function that `measure` makes of `of` makes of their rows.
    pub(super) fn map(&mut self, of: Vec<Expr>, measure: impl Measure + 'static) -> Expr {
        let lazy = Arc::new(Lazy { of: of.clone(), measure: Box::new(measure), made: OnceLock::new() });
        self.0.push(lazy.clone());
        Expr::Map { of, map: lazy }
    }
}

/// The first operand less the second.
#[derive(Debug)]
struct Less;

impl RowMap for Less {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        out.iter_mut().zip(&others[0]).for_each(|(value, less)| *value -= less);
    }
}

/// `from - base`, in f32.
pub(super) fn difference(from: Expr, base: Expr) -> Expr {
    Expr::Map { of: vec![from, base], map: Arc::new(Less) }
}
