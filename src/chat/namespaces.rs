//! Assignments to fields of a namespace, inside macros and call blocks. These see the variables outside that they read;
//! minijinja doesn't count `{% set ns.field = .. %}` as a reading of `ns`.

use regex_lite::Regex;

/// The template with a reading of the namespace before each assignment, which prints nothing.
pub(super) fn rewrite(template: &str) -> String {
    let assignment = Regex::new(r"\{%([-+]?)\s*set\s+([A-Za-z_][A-Za-z0-9_]*)\s*\.").expect("a pattern");
    assignment.replace_all(template, "{%$1 if $2 %}{% endif %}{% set $2.").into_owned()
}
