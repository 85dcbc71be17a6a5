//! The nesting of a dictionary that is to be written: containers inside each other, with tensors as leaves.

use std::collections::{BTreeMap, HashMap};

use crate::source::Step;

/// A container, or the number of a name.
#[derive(Debug)]
pub(super) enum Node {
    Leaf(usize),
    Dict(Dict),
    List {
        /// The number of values, of which some may not be written.
        of: usize,
        tuple: bool,
        items: BTreeMap<usize, Node>,
    },
}

/// A dictionary whose keys are in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Dict {
    pub(super) entries: Vec<(Step, Node)>,
    places: HashMap<Step, usize>,
}

/// The tree of `names`, each with the steps that lead to it. A name without steps is a key of the outermost dictionary.
/// `None` if two of them don't fit together.
pub(super) fn nested<'a>(names: impl Iterator<Item = (&'a str, Option<&'a [Step]>)>) -> Option<Node> {
    let mut root = None;
    for (number, (name, steps)) in names.enumerate() {
        match steps {
            Some(steps) if !steps.is_empty() => insert(&mut root, steps, number)?,
            _ => insert(&mut root, &[Step::Key(name.to_owned())], number)?,
        }
    }
    Some(root.unwrap_or_else(|| Node::Dict(Dict::default())))
}

/// Puts leaf `number` at the end of `steps` from `place`, which is empty or a node.
fn insert(place: &mut Option<Node>, steps: &[Step], number: usize) -> Option<()> {
    let Some((step, rest)) = steps.split_first() else {
        return place.is_none().then(|| *place = Some(Node::Leaf(number)));
    };
    if place.is_none() {
        *place = Some(match step {
            Step::Item { of, tuple, .. } => Node::List { of: *of, tuple: *tuple, items: BTreeMap::new() },
            Step::Key(_) | Step::Number(_) => Node::Dict(Dict::default()),
        });
    }
    match (place.as_mut()?, step) {
        (Node::Dict(dict), Step::Key(_) | Step::Number(_)) => {
            let known = dict.places.get(step).copied();
            let mut inner = known.map(|at| std::mem::replace(&mut dict.entries[at].1, Node::Leaf(0)));
            insert(&mut inner, rest, number)?;
            match known {
                Some(at) => dict.entries[at].1 = inner?,
                None => {
                    dict.places.insert(step.clone(), dict.entries.len());
                    dict.entries.push((step.clone(), inner?));
                }
            }
            Some(())
        }
        (Node::List { of, items, .. }, Step::Item { index, .. }) if index < of => {
            let mut inner = items.remove(index);
            insert(&mut inner, rest, number)?;
            items.insert(*index, inner?);
            Some(())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_become_containers_and_what_does_not_fit_is_found() {
        let key = |text: &str| Step::Key(text.into());
        let item = |index: usize| Step::Item { index, of: 3, tuple: false };
        let names = |steps: Vec<Vec<Step>>| {
            let steps: Vec<Vec<Step>> = steps;
            nested(steps.iter().map(|steps| ("name", Some(steps.as_slice())))).map(|node| format!("{node:?}"))
        };
        let made = names(vec![vec![key("a"), item(0)], vec![Step::Number(1)], vec![key("a"), item(2)]]).unwrap();
        assert!(made.contains("List { of: 3, tuple: false, items: {0: Leaf(0), 2: Leaf(2)} }"), "{made}");
        assert!(names(vec![vec![key("a")], vec![key("a"), key("b")]]).is_none());
        assert!(names(vec![vec![key("a"), key("b")], vec![key("a")]]).is_none());
        assert!(names(vec![vec![key("a"), key("b")], vec![key("a"), item(0)]]).is_none());
        assert!(names(vec![vec![item(3)]]).is_none());
    }
}
