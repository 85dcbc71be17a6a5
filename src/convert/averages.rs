//! Averages of weights that a file keeps as a list: they get the names of another part of the file.
//!
//! An average has the parameters in their order, each once, and no buffers. Which of a state dict's tensors are parameters
//! isn't in the file, so that the list is matched by shapes, and has to fit in one way alone.

use std::path::Path;

use super::{Input, Opening};
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};
use crate::source::show_shape;

/// Ends of the names of norms' buffers.
const BUFFERS: [&str; 3] = [".running_mean", ".running_var", ".num_batches_tracked"];

/// Gives the tensors of `list`, which stand in the file at `path` in this order, the names of others: of those under the key
/// `from` in the same file, or of those in another file, `FILE` or `FILE:KEY`. Names of one storage get one tensor. Returns a
/// note on the names that have none.
///
/// # Errors
/// Errors of opening the other tensors; [`crate::Error::Mismatch`] for a list that fits in no way, or in several.
pub(super) fn named(path: &Path, list: &Plan, from: &str) -> Result<(Plan, Option<String>)> {
    let (file, key) = place_of(path, from);
    let Input::Weights { plan: others, .. } = Input::open(file, Opening { key, ..Opening::default() })? else {
        return Err(Finding::new(file, "")
            .expected("tensors alone, whose names are taken")
            .found("another input")
            .mismatch());
    };
    let (names, first_of) = (&others.tensors, others.shared());
    let is_parameter = |number: &usize| {
        let own = &names[*number];
        first_of[*number] == *number && own.dtype.is_float() && !BUFFERS.iter().any(|end| own.name.ends_with(end))
    };
    let parameters: Vec<usize> = (0..names.len()).filter(is_parameter).collect();
    let shapes: Vec<&[usize]> = parameters.iter().map(|number| names[*number].shape.as_slice()).collect();
    let listed: Vec<&[usize]> = list.tensors.iter().map(|tensor| tensor.shape.as_slice()).collect();
    let finding = || Finding::new(path, format!("{from:?}"));
    let chosen = match matched(&listed, &shapes) {
        Match::One(chosen) => chosen,
        Match::Several => {
            let expected = format!("names that the list of {} tensors fits in one way", listed.len());
            let found = format!("several ways among {} parameters", shapes.len());
            return Err(finding().expected(expected).found(found).mismatch());
        }
        Match::None(place) => {
            let found = list.tensors.get(place).map_or_else(
                || format!("{} tensors", listed.len()),
                |tensor| format!("{} as tensor {place} of {}", show_shape(&tensor.shape), listed.len()),
            );
            let expected = format!("a list of its {} parameters, in order and by shape", shapes.len());
            return Err(finding().expected(expected).found(found).mismatch());
        }
    };
    let mut plan = Plan::default();
    for (number, own) in names.iter().enumerate() {
        let place = chosen.iter().position(|chosen| parameters[*chosen] == first_of[number]);
        if let Some(place) = place {
            plan.tensors.push(PlannedTensor { name: own.name.clone(), ..list.tensors[place].clone() });
        }
    }
    let left = names.len() - plan.tensors.len();
    let note = format!(
        "{}: {left} names under {from:?} have no tensor in the list: buffers, or what isn't trained",
        path.display()
    );
    Ok((plan, (left > 0).then_some(note)))
}

/// The file and the part in it that `from` names.
fn place_of<'a>(path: &'a Path, from: &'a str) -> (&'a Path, Option<&'a str>) {
    if Path::new(from).is_file() {
        return (Path::new(from), None);
    }
    match from.rsplit_once(':') {
        Some((file, key)) if Path::new(file).is_file() => (Path::new(file), Some(key)),
        _ => (path, Some(from)),
    }
}

/// The ways in which a list fits.
#[derive(Debug, PartialEq)]
enum Match {
    /// In none: the first tensor of the list for which nothing is left.
    None(usize),
    /// In one: the place of each.
    One(Vec<usize>),
    /// In more.
    Several,
}

/// Where the shapes of `list` stand among `all`, in their order. The earliest and the latest places are the same if there is
/// one way.
fn matched(list: &[&[usize]], all: &[&[usize]]) -> Match {
    let (mut earliest, mut next) = (Vec::with_capacity(list.len()), 0);
    for (place, shape) in list.iter().enumerate() {
        match all[next..].iter().position(|other| other == shape) {
            Some(found) => {
                earliest.push(next + found);
                next += found + 1;
            }
            None => return Match::None(place),
        }
    }
    let mut end = all.len();
    for (shape, first) in list.iter().zip(&earliest).rev() {
        // There is one, because the earliest place comes before the end.
        let last = all[..end].iter().rposition(|other| other == shape).unwrap_or(*first);
        if last != *first {
            return Match::Several;
        }
        end = last;
    }
    Match::One(earliest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_fits_in_one_way_in_several_or_in_none() {
        let all: [&[usize]; 5] = [&[2, 2], &[2], &[3], &[2], &[1]];
        assert_eq!(matched(&[&[2, 2], &[2], &[3], &[2], &[1]], &all), Match::One(vec![0, 1, 2, 3, 4]));
        assert_eq!(matched(&[&[2, 2], &[3], &[1]], &all), Match::One(vec![0, 2, 4]));
        assert_eq!(matched(&[&[2, 2], &[2]], &all), Match::Several);
        assert_eq!(matched(&[&[3], &[2, 2]], &all), Match::None(1));
        assert_eq!(matched(&[&[3], &[2], &[2]], &all), Match::None(2));
        assert_eq!(matched(&[], &all), Match::One(Vec::new()));
    }
}
