//! Outputs appear whole or not at all, and never where they weren't asked for.

use std::os::unix::fs::symlink;

use super::*;
use crate::plan::{FileLayout, Layout, Options, Plan, execute};

#[test]
fn dropped_outputs_leave_nothing_and_committed_ones_appear() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out.gguf");
    let staging = Staging::file(&target, false).unwrap();
    fs::write(staging.path(), b"half").unwrap();
    drop(staging);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    let staging = Staging::file(&target, false).unwrap();
    fs::write(staging.path(), b"whole").unwrap();
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
    let write =
        |staging: &Staging| names.iter().for_each(|n| fs::write(staging.path_of(n), n.to_str().unwrap()).unwrap());
    let staging = stage(false).unwrap();
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
    let staging = Staging::files(dir.path(), names, false).unwrap();
    names.iter().for_each(|name| fs::write(staging.path_of(name), b"new").unwrap());
    // Something that can't be replaced appears meanwhile.
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
fn a_link_is_replaced_and_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    fs::write(&precious, b"all my work").unwrap();
    let link = dir.path().join("out");
    symlink(&precious, &link).unwrap();
    assert!(matches!(Staging::file(&link, false), Err(Error::Exists(_))));
    assert!(matches!(Staging::files(dir.path(), [Path::new("out")], false), Err(Error::Exists(_))));
    // In place of a folder it is refused, wherever it leads.
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("config.json"), b"{}").unwrap();
    let folder_link = dir.path().join("folder");
    symlink(&elsewhere, &folder_link).unwrap();
    let error = Staging::folder(&folder_link, true).err().unwrap().to_string();
    assert!(error.ends_with("expected a folder, found a file"), "{error}");

    let staging = Staging::file(&link, true).unwrap();
    fs::write(staging.path(), b"new").unwrap();
    staging.commit().unwrap();
    assert_eq!(fs::read(&link).unwrap(), b"new");
    assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&precious).unwrap(), b"all my work");
    // One that leads nowhere counts as being there.
    let dangling = dir.path().join("dangling");
    symlink(dir.path().join("nothing"), &dangling).unwrap();
    assert!(matches!(Staging::file(&dangling, false), Err(Error::Exists(_))));
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
        let layout = Layout { files: vec![file(name)], places: vec![] };
        execute(&plan, &layout, staging, Options::default(), &|_| {})
    };
    let staging = Staging::file(&target, false).unwrap();
    symlink(&precious, staging.path()).unwrap();
    let error = run(&staging, "out").unwrap_err().to_string();
    assert!(error.contains("cannot create"), "{error}");
    drop(staging);

    let staging = Staging::files(dir.path(), ["out", "more"].map(Path::new), false).unwrap();
    symlink(&precious, staging.path_of(Path::new("more"))).unwrap();
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
    fs::write(staging.path(), b"newer").unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"old", "untouched until the new one is complete");
    staging.commit().unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"newer");
    let mut kept = String::new();
    std::io::Read::read_to_string(&mut &old, &mut kept).unwrap();
    assert_eq!(kept, "old", "whoever has the old one open goes on reading it");
}
