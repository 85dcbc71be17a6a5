//! Tests that nothing is left of an output when the program is ended while it writes.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Makes a folder with a model of one matrix of zeros, large enough that a conversion takes
/// seconds. The file is sparse and takes no space.
fn model(folder: &Path) {
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("config.json"), r#"{"architectures": ["SomethingElse"]}"#).unwrap();
    let bytes = 16384u64 * 65536 * 4;
    let header = format!(r#"{{"w":{{"dtype":"F32","shape":[16384,65536],"data_offsets":[0,{bytes}]}}}}"#);
    let mut file = File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + bytes).unwrap();
}

fn convert(dir: &Path, output: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atombank"));
    command.args(["convert", "model", "--type", "f16", "--threads", "1", "-o", output]).current_dir(dir);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Names in the folder other than the model's.
fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "model").collect()
}

fn wait_until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(60), "the output was never begun");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The number of bytes that the process has written to any files.
fn written(child: &Child) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[test]
fn signals_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("model"));
    for signal in ["TERM", "HUP", "INT"] {
        // A folder has a temporary name while it is written.
        let mut child = convert(dir.path(), "out");
        wait_until(|| names(dir.path()).iter().any(|name| name.ends_with(".partial")));
        let kill = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal}");
        assert_eq!(names(dir.path()), [""; 0], "{signal}");
    }
}

#[test]
fn what_was_killed_leaves_nothing_or_goes_with_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("model"));
    // A file has no name until it is complete, if the file system supports that.
    let mut child = convert(dir.path(), "out.safetensors");
    wait_until(|| written(&child) > 1 << 20);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    let left = names(dir.path());
    assert!(left.is_empty() || left.iter().all(|name| name.ends_with(".partial")), "{left:?}");
    // A folder stays, and the next run with the same output deletes it.
    let mut child = convert(dir.path(), "out");
    wait_until(|| names(dir.path()).iter().any(|name| name.starts_with(".out.") && name.ends_with(".partial")));
    child.kill().unwrap();
    child.wait().unwrap();
    let old = names(dir.path());
    assert!(old.iter().any(|name| name.starts_with(".out.")));
    let mut child = convert(dir.path(), "out");
    let new = format!(".out.{}.partial", child.id());
    wait_until(|| names(dir.path()).contains(&new));
    let now = names(dir.path());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(old.iter().filter(|name| name.starts_with(".out.")).all(|name| !now.contains(name)), "{old:?} {now:?}");
}
