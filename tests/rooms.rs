//! Tests that the crate's rooms only use each other as docs/architecture.md says, without cycles.
//!
//! A room is a folder or a file directly below `src`. The document's table "room, uses" lists the rooms that each room
//! may use; this test compares the table with the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms by name, each with the rooms that it uses.
type Edges = BTreeMap<String, BTreeSet<String>>;

/// Files in `src` that aren't rooms, because they name all rooms.
const NO_ROOMS: [&str; 2] = ["lib.rs", "main.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The table in docs/architecture.md with the header `| room | uses |`; names are in backquotes.
fn documented() -> Edges {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let rows = text.lines().skip_while(|line| *line != "| room | uses |").skip(2).take_while(|l| l.starts_with('|'));
    let mut edges = Edges::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        assert_eq!(cells.len(), 2, "a row of two cells: {row}");
        let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
        for room in names(cells[0]) {
            assert!(edges.insert(room, names(cells[1])).is_none(), "each room once: {row}");
        }
    }
    edges
}

/// Every Rust file below `folder`.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whether a file contains only tests, which may use any room.
fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests") || path.file_name().is_some_and(|n| n == "tests.rs")
}

/// The code of a file, without comments and without the tests at its end.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let lines: Vec<&str> = lines.collect();
    let tests = |i: usize| lines[i].trim() == "#[cfg(test)]" && lines.get(i + 1).is_some_and(|l| l.starts_with("mod "));
    let end = (0..lines.len()).find(|i| tests(*i)).unwrap_or(lines.len());
    lines[..end].join("\n")
}

/// The rooms that `code` names after `crate::`, also in a list: `crate::{dtype::DType, quant}`.
fn used(code: &str) -> BTreeSet<String> {
    let name = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        text[..end].to_owned()
    };
    let mut rooms = BTreeSet::new();
    for (place, _) in code.match_indices("crate::") {
        // `$crate::`, or the end of another word.
        if code[..place].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[place + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            rooms.insert(name(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    rooms.insert(name(&list[i..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

/// The uses of rooms in the sources.
fn written() -> Edges {
    let src = root().join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut edges = Edges::new();
    for file in files {
        let below = file.strip_prefix(&src).unwrap();
        let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
        if NO_ROOMS.contains(&first) || is_test(below) {
            continue;
        }
        let room = first.strip_suffix(".rs").unwrap_or(first).to_owned();
        let uses = edges.entry(room).or_default();
        uses.extend(used(&code(&fs::read_to_string(&file).unwrap())));
    }
    let rooms: BTreeSet<String> = edges.keys().cloned().collect();
    for (room, uses) in &mut edges {
        // `Error`, `Result` and `DType` are named from the crate's root as well.
        let at_root = |name: &String| match name.as_str() {
            "Error" | "Result" => "error".to_owned(),
            "DType" => "dtype".to_owned(),
            _ => name.clone(),
        };
        *uses = uses.iter().map(at_root).filter(|name| name != room).collect();
        let unknown: Vec<_> = uses.difference(&rooms).collect();
        assert!(unknown.is_empty(), "{room} uses what is no room: {unknown:?}");
    }
    // The program sees the library from outside.
    edges.remove("cli");
    edges
}

/// The path of a cycle in `edges`, from a room through others back to itself, if there is one.
fn circle(edges: &Edges) -> Option<Vec<String>> {
    fn walk(room: &str, edges: &Edges, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|seen| seen == room) {
            return Some(way[start..].to_vec());
        }
        if !done.contains(room) {
            way.push(room.to_owned());
            for next in edges.get(room).into_iter().flatten() {
                if let Some(found) = walk(next, edges, way, done) {
                    return Some(found);
                }
            }
            way.pop();
            done.insert(room.to_owned());
        }
        None
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|room| walk(room, edges, &mut Vec::new(), &mut done))
}

#[test]
fn rooms_use_each_other_as_documented() {
    let (documented, written) = (documented(), written());
    let rooms = |edges: &Edges| edges.keys().cloned().collect::<Vec<_>>();
    assert_eq!(rooms(&documented), rooms(&written), "docs/architecture.md lists every room of src, and no other");
    let mut wrong = Vec::new();
    for (room, uses) in &written {
        wrong.extend(uses.difference(&documented[room]).map(|other| format!("{room} uses {other}, not in the table")));
        wrong
            .extend(documented[room].difference(uses).map(|other| format!("{room} doesn't use {other}, in the table")));
    }
    assert!(wrong.is_empty(), "docs/architecture.md and src differ:\n{}", wrong.join("\n"));
}

#[test]
fn no_room_uses_itself_by_way_of_others() {
    assert_eq!(circle(&written()), None);
}

#[test]
fn uses_and_circles_are_found() {
    let code = code(
        "use crate::a::B; // crate::no\nfn f() { crate::b::g($crate::c::d) }\nuse crate::{d, e::{f, g}, Error};\n\
                     #[cfg(test)]\nmod tests { use crate::h; }",
    );
    assert_eq!(used(&code).into_iter().collect::<Vec<_>>(), ["Error", "a", "b", "c", "d", "e"]);
    let edges = |list: &[(&str, &str)]| {
        let mut edges = Edges::new();
        for (from, to) in list {
            edges.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        edges
    };
    assert_eq!(circle(&edges(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
    assert_eq!(circle(&edges(&[("a", "b"), ("b", "c"), ("c", "b")])), Some(vec!["b".into(), "c".into()]));
}
