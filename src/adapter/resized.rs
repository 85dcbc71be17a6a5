//! Bases whose vocabulary was resized before an adapter was trained: the base gets the number of rows that the adapter was
//! trained with, and the rows that it lacks are the adapter's.

use std::path::Path;

use super::AdapterFiles;
use super::new_tokens::NewTokens;
use super::peft::{Base, Held, TokenRows, bias_of};
use crate::error::{Finding, Result};
use crate::plan::{Expr, Pick, Plan, PlannedTensor};
use crate::source::show_shape;

/// The most rows that a vocabulary can have.
const MAX_ROWS: usize = 1 << 24;

/// A base with another number of rows.
#[derive(Debug)]
pub struct Resized {
    /// The number of rows of its embeddings.
    pub rows: usize,
    /// The base's tensors. The rows that it lacks are those of an adapter.
    pub weights: Plan,
    /// One line for everything that the user should know.
    pub notes: Vec<String>,
}

/// What an adapter says about the rows, and where it is.
struct Said<'a> {
    adapter: &'a AdapterFiles,
    rows: Vec<TokenRows>,
    new: Option<NewTokens>,
}

/// `weights`, which are those of `base`, with the rows that the adapters were trained with. `None` if that is the number
/// that the base has, or if no adapter says anything about it.
///
/// # Errors
/// [`crate::Error::Mismatch`] for adapters of different numbers of rows, and where no adapter has the rows that the base
/// lacks; errors of reading the files.
pub fn resized(base: &Base, weights: &Plan, adapters: &[AdapterFiles]) -> Result<Option<Resized>> {
    let Some(embeddings) = base.embeddings().filter(|tensor| tensor.shape.len() == 2) else { return Ok(None) };
    let own = embeddings.shape[0];
    // A class may have more embeddings than outputs. A head of its own number of rows says nothing about them.
    let says_rows = |of: &TokenRows| {
        let own_rows = base.tensor(&of.of).and_then(|tensor| tensor.shape.first().copied());
        own_rows.is_none_or(|rows| rows == own || rows != of.rows)
    };
    let mut said = Vec::new();
    for adapter in adapters {
        let new = NewTokens::of(adapter.path(), embeddings.row_len())?;
        let rows = adapter.token_rows(base)?.into_iter().filter(says_rows).collect();
        said.push(Said { adapter, rows, new });
    }
    let Some((rows, file)) = rows_of(&said, own)? else { return Ok(None) };
    if rows == 0 || rows > MAX_ROWS {
        let finding = Finding::new(file, "its vocabulary").expected(format_args!("from 1 to {MAX_ROWS} rows"));
        return Err(finding.found(rows).mismatch());
    }
    let of_embeddings = with_rows(base, embeddings, rows, &said)?;
    let mut resized = weights.clone();
    for tensor in &mut resized.tensors {
        let is_head = base.head().is_some_and(|head| head.name == tensor.name);
        let is_bias = base.head().is_some_and(|head| bias_of(&head.name) == tensor.name) && tensor.shape == [own];
        let changed = match tensor.name == embeddings.name {
            true => of_embeddings.clone(),
            // A tied checkpoint can have a head that no model uses.
            false if is_head && base.tied_head().is_some() => {
                PlannedTensor { name: tensor.name.clone(), ..of_embeddings.clone() }
            }
            false if is_head || is_bias => with_rows(base, tensor, rows, &said)?,
            false => continue,
        };
        *tensor = changed;
    }
    let mut notes = vec![format!(
        "{}: trained with {rows} rows of embeddings where the base has {own}: the result has {rows}, and so says vocab_size",
        file.display()
    )];
    for new in said.iter().filter_map(|said| said.new.as_ref()) {
        if base.tied_head().is_some() {
            new.check_tied()?;
        }
        if said.iter().flat_map(|said| &said.rows).any(|of| matches!(of.held, Held::Whole(_))) {
            notes.push(format!("{}: not read: an adapter has the embeddings whole", new.file().display()));
        }
    }
    Ok(Some(Resized { rows, weights: resized, notes }))
}

/// The number of rows that the adapters were trained with, and the file that says so. `None` if it is the base's.
fn rows_of<'a>(said: &'a [Said], own: usize) -> Result<Option<(usize, &'a Path)>> {
    let mut exact: Option<(usize, &Path, String)> = None;
    for said in said {
        let file = said.adapter.file();
        let of_rows = said.rows.iter().filter(|said| !said.at_least).map(|said| (said.rows, said.entry.clone()));
        let of_new = said.new.iter().map(|new| (own.saturating_add(new.count()), new.input.name.clone()));
        for (rows, entry) in of_rows.chain(of_new) {
            match &exact {
                Some((first, other, of)) if *first != rows => {
                    let finding = Finding::new(file, format!("tensor {entry:?}"));
                    let expected = format!("{first} rows of the vocabulary, as {of:?} in {}", other.display());
                    let hint = "an adapter fits one number of rows only: merge adapters of one vocabulary";
                    return Err(finding.expected(expected).found(rows).hint(hint).mismatch());
                }
                Some(_) => {}
                None => exact = Some((rows, file, entry)),
            }
        }
    }
    let at_least = said.iter().flat_map(|said| said.rows.iter().map(move |of| (of.rows, said.adapter.file())));
    let found = match exact {
        Some((rows, file, _)) => Some((rows, file)),
        None => at_least.max_by_key(|(rows, _)| *rows).filter(|(rows, _)| *rows > own),
    };
    Ok(found.filter(|(rows, _)| *rows != own))
}

/// `tensor` of the base with `rows` rows.
fn with_rows(base: &Base, tensor: &PlannedTensor, rows: usize, said: &[Said]) -> Result<PlannedTensor> {
    let own = tensor.shape[0].min(rows);
    let shape: Vec<usize> = std::iter::once(rows).chain(tensor.shape[1..].iter().copied()).collect();
    let mut of = vec![tensor.expr.clone()];
    let mut picks = vec![Pick { of: 0, start: 0, len: own }];
    if own < rows {
        let (held, more) = match new_rows(base, tensor, own..rows, said) {
            Some(found) => found,
            None => return Err(missing(tensor, own..rows, said)),
        };
        of.push(base.loaded(held, tensor.dtype));
        picks.extend(more.into_iter().map(|start| Pick { of: 1, start, len: 1 }));
    }
    let expr = Expr::Rows { shape: shape.clone(), of, picks: picks.into() };
    Ok(PlannedTensor { name: tensor.name.clone(), dtype: tensor.dtype, shape, expr })
}

/// A tensor of an adapter that has the rows `rows` of `tensor`, and their places in it.
fn new_rows(
    base: &Base,
    tensor: &PlannedTensor,
    rows: std::ops::Range<usize>,
    said: &[Said],
) -> Option<(Expr, Vec<usize>)> {
    // The rows of a tied head are those of the embeddings.
    let is_embeddings = base.embeddings().is_some_and(|embeddings| embeddings.name == tensor.name);
    let tied = base.tied_head().filter(|_| is_embeddings).map(|head| head.name.as_str());
    let names = std::iter::once(tensor.name.as_str()).chain(tied);
    for name in names {
        for of in said.iter().flat_map(|said| &said.rows).filter(|of| of.of == name) {
            match &of.held {
                Held::Whole(expr) => return Some((expr.clone(), rows.collect())),
                Held::Rows(pairs, expr) => {
                    // Where a row occurs twice, the last one counts.
                    let place = |row| pairs.iter().rev().find(|(of, _)| *of == row).map(|(_, place)| *place);
                    if let Some(places) = rows.clone().map(place).collect() {
                        return Some((expr.clone(), places));
                    }
                }
                Held::Nothing => {}
            }
        }
    }
    let new = said.iter().find_map(|said| said.new.as_ref())?;
    let held = if is_embeddings { &new.input } else { new.output.as_ref()? };
    (tensor.shape.len() == 2 && rows.len() == new.count()).then(|| (held.expr.clone(), (0..new.count()).collect()))
}

/// The error for rows that neither the base nor an adapter has.
fn missing(tensor: &PlannedTensor, rows: std::ops::Range<usize>, said: &[Said]) -> crate::Error {
    let file = said.iter().find(|said| !said.rows.is_empty() || said.new.is_some());
    let file = file.map(|said| said.adapter.file().to_owned()).unwrap_or_default();
    Finding::new(file, format!("rows of {:?}", tensor.name))
        .expected(format_args!(
            "those from {} to {} of the vocabulary of its training, where the base has {}",
            rows.start,
            rows.end.saturating_sub(1),
            show_shape(&tensor.shape)
        ))
        .found("none")
        .hint(
            "resizing gave them values that only the trained model has: save the adapter again with \
             save_embedding_layers=True",
        )
        .mismatch()
}
