//! Functions of rows that depend on whole tensors, such as a threshold of magnitudes or an angle between models.
//!
//! What such a function needs is a handful of numbers for each tensor. They are computed once, by reading the
//! tensor's rows, on the thread that asks for them first. That thread doesn't hand work to others, so a thread
//! that waits for the numbers can never be the one that has to compute them.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::svd::Cut;
use crate::error::{Error, Result};
use crate::merge::Truncation;
use crate::plan::{Expr, RowMap};

/// Computes a function of rows from whole tensors.
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

/// The result of combining. The numbers that it needs from whole tensors are computed by [`Combined::measure`], or
/// for each tensor when its rows are first read.
#[derive(Debug)]
pub struct Combined<T> {
    /// The combined plan or updates.
    pub result: T,
    pending: Vec<Arc<Lazy>>,
    /// The updates that are truncated to a rank, by the name of their weight.
    cuts: Vec<(String, Arc<Cut>)>,
}

impl<T> Combined<T> {
    pub(super) fn new(result: T, pending: Pending) -> Self {
        Self { result, pending: pending.0, cuts: Vec::new() }
    }

    pub(super) fn with_cuts(self, cuts: Vec<(String, Arc<Cut>)>) -> Self {
        Self { cuts, ..self }
    }

    /// The error of each module that was truncated to a rank, before its factors are rounded to their type.
    /// Computes the singular values of modules that were not measured before.
    ///
    /// # Errors
    /// As [`Combined::measure`].
    pub fn truncations(&self) -> Result<Vec<Truncation>> {
        self.cuts.par_iter().map(|(name, cut)| cut.truncation(name)).collect()
    }

    /// The number of tensors that have to be read whole.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Reads every tensor that has to be read whole, several at a time on rayon's current pool, and calls `done`
    /// after each. Without this call the executor does the same work, but with less parallelism and with less
    /// precise errors.
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

/// Functions that aren't computed yet.
#[derive(Debug, Default)]
pub(super) struct Pending(Vec<Arc<Lazy>>);

impl Pending {
    /// The function that `measure` computes from `of`, applied to the rows of `of`.
    pub(super) fn map(&mut self, of: Vec<Expr>, measure: impl Measure + 'static) -> Expr {
        let lazy = Arc::new(Lazy { of: of.clone(), measure: Box::new(measure), made: OnceLock::new() });
        self.0.push(lazy.clone());
        Expr::Map { of, map: lazy }
    }
}

/// The first operand minus the second.
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
