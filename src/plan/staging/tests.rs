//! Outputs appear whole or not at all, and never where they weren't asked for.

use std::os::unix::fs::symlink;

use super::*;
use crate::plan::{FileLayout, Layout, Options, Plan, execute};

/// Writes the whole content of one file of an output.
fn put(staging: &Staging, name: &str, content: &[u8]) {
    staging.create(Path::new(name)).unwrap().0.write_all(content).unwrap();
}

/// The names in a folder, sorted.
fn names_in(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// Whether the file system of the tests can make files without a name.
fn unnamed_files_can_be_made() -> bool {
    unnamed_file(&std::env::temp_dir()).is_some()
}

#[test]
fn dropped_outputs_leave_nothing_and_committed_ones_appear() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out.gguf");
    let staging = Staging::file(&target, false).unwrap();
    put(&staging, "out.gguf", b"half");
    assert!(!unnamed_files_can_be_made() || names_in(dir.path()).is_empty(), "not even kill -9 leaves anything");
    drop(staging);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let staging = Staging::file(&target, false).unwrap().named();
    put(&staging, "out.gguf", b"half");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    drop(staging);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    let named = dir.path().join("named");
    let staging = Staging::file(&named, false).unwrap().named();
    put(&staging, "named", b"whole");
    staging.commit().unwrap();
    assert_eq!(fs::read(&named).unwrap(), b"whole");
    fs::remove_file(&named).unwrap();
    let staging = Staging::file(&target, false).unwrap();
    put(&staging, "out.gguf", b"whole");
    staging.commit().unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"whole");
    assert!(matches!(Staging::file(&target, false), Err(Error::Exists(_))));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn replaces_a_checkpoint_folder_but_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("model");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("thesis.txt"), b"all my work").unwrap();
    assert!(matches!(Staging::folder(&target, true), Err(Error::Mismatch(_))));
    fs::write(target.join("config.json"), b"{}").unwrap();
    let staging = Staging::folder(&target, true).unwrap();
    fs::write(staging.path().join("config.json"), b"[]").unwrap();
    staging.commit().unwrap();
    assert_eq!(fs::read(target.join("config.json")).unwrap(), b"[]");
    assert!(!target.join("thesis.txt").exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn only_a_new_output_goes_without_waiting_for_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    assert!(Staging::file(&target, true).unwrap().syncs(), "unless told otherwise");
    assert!(!Staging::file(&target, true).unwrap().sync(false).syncs());
    fs::write(&target, b"old").unwrap();
    assert!(Staging::file(&target, true).unwrap().sync(false).syncs());
    let names = ["new", "out"].map(Path::new);
    assert!(Staging::files(dir.path(), names, true).unwrap().sync(false).syncs(), "one of them is there");
    let folder = dir.path().join("folder");
    let staging = Staging::folder(&folder, true).unwrap().sync(false);
    staging.write("config.json", b"{}").unwrap();
    staging.commit().unwrap();
    assert!(Staging::folder(&folder, true).unwrap().sync(false).syncs());
}

#[test]
fn several_files_appear_together_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"].map(Path::new);
    let stage = |overwrite| Staging::files(dir.path(), names, overwrite);
    let write = |staging: &Staging| {
        names.iter().map(|n| n.to_str().unwrap()).for_each(|n| put(staging, n, n.as_bytes()));
    };
    let staging = stage(false).unwrap().named();
    write(&staging);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    drop(staging);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    fs::write(dir.path().join("other"), b"stays").unwrap();
    let staging = stage(false).unwrap();
    write(&staging);
    staging.commit().unwrap();
    for name in names {
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), name.to_str().unwrap().as_bytes());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);

    fs::remove_file(dir.path().join(names[0])).unwrap();
    match stage(false) {
        Err(Error::Exists(path)) => assert_eq!(path, dir.path().join(names[1])),
        _ => panic!("a shard that is there was not seen"),
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    let staging = stage(true).unwrap();
    write(&staging);
    staging.commit().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn a_shard_that_cannot_get_its_name_is_an_error_and_leaves_no_temporary_file() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c"].map(Path::new);
    let staging = Staging::files(dir.path(), names, false).unwrap().named();
    names.iter().for_each(|name| put(&staging, name.to_str().unwrap(), b"new"));
    // A folder, which can't be replaced, appears under the name after staging began.
    fs::create_dir(dir.path().join("b")).unwrap();
    let error = staging.commit().unwrap_err().to_string();
    assert!(error.contains("b: cannot write"), "{error}");
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["b", "c"], "the first one comes last: nobody takes the rest for a model");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["../m.gguf", "/tmp/m.gguf", "sub/m.gguf", "..", "."] {
        let error = Staging::files(dir.path(), [Path::new(name)], true).err().unwrap().to_string();
        assert!(error.contains("output: expected names of files in it, each once"), "{error}");
    }
    assert!(Staging::files(dir.path(), ["m", "m"].map(Path::new), false).is_err());
    assert!(matches!(Staging::file(&dir.path().join(".."), true), Err(Error::Mismatch(_))));
}

#[test]
fn a_file_is_no_folder_and_a_folder_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (file, folder) = (dir.path().join("file"), dir.path().join("folder"));
    fs::write(&file, b"old").unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), b"{}").unwrap();
    let refusal = |staging: Result<Staging>| staging.err().unwrap().to_string();
    assert!(refusal(Staging::file(&folder, true)).ends_with("output: expected a file, found a folder"));
    assert!(refusal(Staging::folder(&file, true)).ends_with("output: expected a folder, found a file"));
    let files = Staging::files(dir.path(), [Path::new("folder")], true);
    assert!(refusal(files).ends_with("output: expected a file, found a folder"));
    assert_eq!(fs::read(&file).unwrap(), b"old");
    assert!(folder.join("config.json").exists());
}

#[test]
fn a_name_that_is_taken_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let staging = Staging::file(&target, false).unwrap();
    put(&staging, "out", b"new");
    fs::write(&target, b"theirs").unwrap();
    if unnamed_files_can_be_made() {
        assert!(matches!(staging.commit(), Err(Error::Exists(path)) if path == target));
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
    }
    assert_eq!(names_in(dir.path()), ["out"]);
}

#[test]
fn a_link_stays_and_what_it_points_to_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (real, old) = (dir.path().join("real"), dir.path().join("real/old"));
    fs::create_dir(&real).unwrap();
    fs::write(&old, b"old").unwrap();
    let link = dir.path().join("out");
    symlink("real/old", &link).unwrap();
    assert!(matches!(Staging::file(&link, false), Err(Error::Exists(path)) if path == link));
    assert!(matches!(Staging::files(dir.path(), [Path::new("out")], false), Err(Error::Exists(_))));
    let staging = Staging::file(&link, true).unwrap();
    put(&staging, "out", b"new");
    staging.commit().unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&old).unwrap(), b"new");
    assert_eq!(names_in(&real), ["old"]);
    // The same for several files.
    let staging = Staging::files(dir.path(), ["out", "other"].map(Path::new), true).unwrap();
    put(&staging, "out", b"newer");
    put(&staging, "other", b"beside");
    staging.commit().unwrap();
    assert_eq!(fs::read(&old).unwrap(), b"newer");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

    // The same for a folder behind a link.
    let (folder, folder_link) = (dir.path().join("model"), dir.path().join("latest"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), b"{}").unwrap();
    symlink(&folder, &folder_link).unwrap();
    let staging = Staging::folder(&folder_link, true).unwrap();
    staging.write("config.json", b"[]").unwrap();
    staging.commit().unwrap();
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"[]");
    assert!(fs::symlink_metadata(&folder_link).unwrap().is_symlink());

    // A link to nothing counts as existing; its target is made.
    let dangling = dir.path().join("dangling");
    symlink(dir.path().join("nothing"), &dangling).unwrap();
    assert!(matches!(Staging::file(&dangling, false), Err(Error::Exists(_))));
    let staging = Staging::file(&dangling, true).unwrap();
    put(&staging, "dangling", b"made");
    staging.commit().unwrap();
    assert_eq!(fs::read(dir.path().join("nothing")).unwrap(), b"made");
    let circle = dir.path().join("circle");
    symlink(&circle, &circle).unwrap();
    let error = Staging::file(&circle, true).err().unwrap().to_string();
    assert!(error.ends_with("found links that lead back to themselves"), "{error}");
}

#[test]
fn pipes_and_sockets_are_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let link = dir.path().join("link");
    symlink(&pipe, &link).unwrap();
    for (path, is) in [(&socket, "a socket"), (&pipe, "a pipe"), (&link, "a pipe")] {
        let error = Staging::file(path, true).err().unwrap().to_string();
        assert!(error.ends_with(&format!("output: expected a file, found {is}")), "{error}");
        let error = Staging::folder(path, true).err().unwrap().to_string();
        assert!(error.ends_with(&format!("output: expected a folder, found {is}")), "{error}");
    }
    // A device is not replaced.
    let found = fs::metadata("/dev/null").unwrap();
    let error = check_replaceable(Path::new("/dev/null"), &found, false).unwrap_err().to_string();
    assert!(error.ends_with("found a device"), "{error}");
    assert_eq!(names_in(dir.path()), ["link", "pipe", "socket"]);
}

#[test]
fn a_missing_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("missing");
    let error = Staging::file(&folder.join("out.gguf"), false).err().unwrap().to_string();
    let expected =
        format!("{}: folder of the output: expected a folder, found nothing; make it first", folder.display());
    assert_eq!(error, expected);
}

#[test]
fn temporaries_of_dead_processes_go_and_those_of_living_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let target = dir.path().join("out.gguf");
    let of = |process: u32| dir.path().join(format!(".out.gguf.{process}.partial"));
    let (dead, locked) = (of(child.id()), of(child.id() + 1));
    fs::write(&dead, b"140 GB").unwrap();
    fs::write(&locked, b"being written").unwrap();
    let held = File::open(&locked).unwrap();
    held.try_lock().unwrap();
    fs::write(dir.path().join(".other.1.partial"), b"of another output").unwrap();
    drop(Staging::file(&target, false).unwrap());
    assert!(!dead.exists(), "nobody writes it any more");
    assert!(locked.exists(), "its writer holds it");
    assert!(dir.path().join(".other.1.partial").exists());
    // The same for a folder.
    drop(held);
    fs::remove_file(&locked).unwrap();
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("model.safetensors"), b"half").unwrap();
    drop(Staging::folder(&target, false).unwrap());
    assert_eq!(names_in(dir.path()), [".other.1.partial"]);
}

#[test]
fn what_is_planted_under_the_temporary_name_is_not_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    fs::write(&precious, b"all my work").unwrap();
    let target = dir.path().join("out");
    let plan = Plan::default();
    let file = |name: &str| FileLayout::text(name, "new".to_owned());
    let run = |staging: &Staging, name: &str| {
        let layout = Layout { files: vec![file(name)], places: vec![], recode: None };
        execute(&plan, &layout, staging, Options::default(), &|_| {})
    };
    let staging = Staging::file(&target, false).unwrap().named();
    symlink(&precious, staging.path()).unwrap();
    let error = run(&staging, "out").unwrap_err().to_string();
    assert!(error.contains("cannot create"), "{error}");
    drop(staging);

    let staging = Staging::files(dir.path(), ["out", "more"].map(Path::new), false).unwrap().named();
    symlink(&precious, &staging.outputs[1].temp).unwrap();
    assert!(run(&staging, "more").is_err());
    drop(staging);

    let temp = Staging::folder(&target, false).unwrap().path().to_owned();
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("kept"), b"").unwrap();
    symlink(&elsewhere, &temp).unwrap();
    assert!(matches!(Staging::folder(&target, false), Err(Error::Io { .. })));

    assert_eq!(fs::read(&precious).unwrap(), b"all my work");
    assert!(elsewhere.join("kept").exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "and nothing of the attempts is left");
}

#[test]
fn input_and_output_may_be_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("same");
    fs::write(&target, b"old").unwrap();
    let old = fs::File::open(&target).unwrap();
    let staging = Staging::file(&target, true).unwrap();
    put(&staging, "same", b"newer");
    assert_eq!(fs::read(&target).unwrap(), b"old", "untouched until the new one is complete");
    staging.commit().unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"newer");
    let mut kept = String::new();
    std::io::Read::read_to_string(&mut &old, &mut kept).unwrap();
    assert_eq!(kept, "old", "whoever has the old one open goes on reading it");
}
