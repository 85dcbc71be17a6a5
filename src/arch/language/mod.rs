//! The language of family files: how its text is read, and how its formulas are computed.
//!
//! docs/families.md describes it.

mod eval;
mod formula;
mod normal;
mod scan;
mod template;

pub(crate) use eval::{Facts, Fault, Scope, equal, holds, whole};
pub(crate) use formula::{Binary, Formula, Function, Unary};
pub(crate) use scan::{Mistake, Scanner, joined};
pub(crate) use template::{Template, generalized};
