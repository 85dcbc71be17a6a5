//! Tests what the program prints for commands that were probably not meant as they are, and for
//! those that succeeded.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use program::{atombank, copy, done, fixture, text};
use serde_json::Value;

fn llama() -> PathBuf {
    fixture("convert/llama/model")
}

/// The one line of a refusal with this exit code.
fn refused(code: i32, args: &[&str]) -> String {
    let out = atombank(args);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(out.stdout.is_empty(), "{args:?}");
    stderr
}

#[test]
fn usage_errors_are_found_before_anything_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let model = llama();
    for (output, more, expected) in [
        ("x.safetensor", &[][..], "--output: expected a name that ends in .safetensors, or a folder's"),
        ("x.gguf.tmp", &[], "--output: expected a name that ends in .gguf, or a folder's"),
        ("x.gguf", &["--type", "q4_km"], "did you mean Q4_K_M?"),
        (
            "x",
            &["--split-max-size", "4GB"],
            "--split-max-size: expected a GGUF, found another output; --shard-size splits",
        ),
        ("x.gguf", &["--split-max-tensors", "0"], "--split-max-tensors: expected a number above 0, found 0"),
        (
            "x.gguf",
            &["--split-max-size", "4"],
            "--split-max-size: expected a size with a unit, like 4GB, found 4 bytes",
        ),
        ("x.gguf", &["--type", "q8_0", "--pure"], "--pure: expected a --type that is a mixture"),
    ] {
        let line = refused(2, &[&["convert", text(&model), "-o", &at(output), "--quiet"], more].concat());
        assert!(line.contains(expected), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    let line = refused(2, &["merge", text(&model), text(&model), "-o", &at("m"), "--method", "sclerp"]);
    assert!(line.contains("--method: ") && line.contains("did you mean slerp?"), "{line}");
    let line = refused(2, &["convert", text(&model), "-o", &at("m.gguf"), "--ouput", "x"]);
    assert!(line.contains("--output"), "{line}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_was_mixed_up_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let model = llama();
    let line = refused(1, &["convert", text(&model), "-o", &at("no/x.gguf")]);
    assert!(line.contains("no: folder of the output: expected a folder, found nothing"), "{line}");
    let line = refused(1, &["quantize", text(&model), "--type", "Q4_K_M", "-o", &at("x.gguf")]);
    assert!(line.contains("expected a GGUF file, found a folder; atombank convert makes"), "{line}");
    for share in ["x=70%", "x=", "x=0,7"] {
        let line = refused(2, &["merge", text(&model), share, "-o", &at("m")]);
        assert!(line.contains("expected NAME=WEIGHT with a number, like x=0.7"), "{line}");
    }
    let line = refused(2, &["merge", text(&model), &format!("{}:0.7", text(&model)), "-o", &at("m")]);
    assert!(line.contains("expected NAME=WEIGHT: "), "{line}");
    let adapter = dir.path().join("adapter");
    fs::create_dir(&adapter).unwrap();
    fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
    let line = refused(1, &["merge", text(&adapter), text(&model), "-o", &at("m")]);
    assert!(line.contains("found an adapter; name the model first, then its adapters"), "{line}");
}

#[test]
fn a_folder_that_can_be_either_is_asked_about() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (base, lora) = (fixture("demo/base"), fixture("demo/lora"));
    let both = copy(&base, &dir.path().join("both"));
    copy(&lora, &both);
    let line = refused(2, &["merge", text(&base), text(&both), "-o", &at("m")]);
    let expected =
        format!("--as: expected adapter or model, with a --method for models, found none for {}", text(&both));
    assert!(line.contains(&expected), "{line}");
    done(&["merge", text(&base), text(&both), "-o", &at("m"), "--as", "adapter"]);
    let line = refused(2, &["merge", text(&base), text(&both), "-o", &at("n"), "--as", "model"]);
    assert!(line.contains("--method: expected a way to make one model of several"), "{line}");
}

#[test]
fn choices_that_can_have_no_effect_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (base, lora) = (fixture("demo/base"), fixture("demo/lora"));
    let weights = base.join("model.safetensors");
    let merge = |other: &std::path::Path, out: &str, options: &[&str], code: i32| {
        refused(code, &[&["merge", text(&base), text(other), "-o", &at(out)], options].concat())
    };
    let line = refused(2, &["convert", text(&weights), "-o", &at("x.bin"), "--as", "model"]);
    assert!(line.contains("--as: expected a folder, which can hold a model and an adapter, found the file"), "{line}");
    let line = refused(2, &["inspect", text(&weights), "--as", "adapter"]);
    assert!(line.contains("--as: expected a folder"), "{line}");
    let line = merge(&weights, "x", &["--as", "adapter"], 2);
    assert!(line.contains("--as: expected a folder to merge") && line.contains("found files alone"), "{line}");
    let line = merge(&lora, "x", &["--as", "model"], 1);
    assert!(line.contains("expected a model: a folder with config.json, found none; --as says what it is"), "{line}");
    let line = merge(&base, "x", &["--as", "adapter"], 1);
    assert!(line.contains("expected an adapter: a folder with adapter_config.json, found a model alone"), "{line}");
    let line = merge(&lora, "x.safetensors", &["--tokenizer", "base"], 2);
    assert!(line.contains("--tokenizer: expected a folder or a GGUF as output"), "{line}");
    let line = refused(2, &["convert", text(&base), "-o", &at("x.gguf"), "--generic", "--type", "q8_0"]);
    assert!(line.contains("--type: expected f32, f16, bf16, auto or source with --generic, found q8_0"), "{line}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn hints_name_options_that_the_command_has() {
    let dir = tempfile::tempdir().unwrap();
    let base = copy(&fixture("demo/base"), &dir.path().join("base"));
    let config = fs::read_to_string(base.join("config.json")).unwrap();
    fs::write(base.join("config.json"), config.replace("LlamaForCausalLM", "OtherForCausalLM")).unwrap();
    let out = dir.path().join("m.gguf");
    let line = refused(1, &["merge", text(&base), text(&fixture("demo/lora")), "-o", text(&out)]);
    assert!(line.contains("architectures: expected a class that this version has a family for"), "{line}");
    assert!(line.contains("; atombank convert with --generic keeps names and files in a GGUF"), "{line}");
    let table = done(&["inspect", text(&base)]);
    assert!(table.contains("only a generic GGUF can be written (atombank convert with --generic)"), "{table}");
}

#[test]
fn models_that_have_nothing_in_common_are_not_compared() {
    let line = refused(1, &["compare", text(&llama()), text(&fixture("demo/lora").join("adapter_model.safetensors"))]);
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("tensors: expected tensors with the names of those of"), "{line}");
}

#[test]
fn broken_json_is_told_in_plain_words() {
    let dir = tempfile::tempdir().unwrap();
    let base = copy(&fixture("demo/base"), &dir.path().join("base"));
    fs::write(base.join("config.json"), "{\n  \"hidden_size\": 64,\n").unwrap();
    let out = dir.path().join("m.gguf");
    let line = refused(1, &["convert", text(&base), "-o", text(&out)]);
    assert!(line.ends_with("config.json: expected a JSON object, found a text that breaks off in line 3\n"), "{line}");
}

#[test]
fn what_was_written_is_said_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let model = llama();
    let line = done(&["convert", text(&model), "--outfile", &at("x.gguf")]);
    assert!(line.starts_with(&format!("wrote {}: ", at("x.gguf"))) && line.ends_with(" s\n"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert_eq!(done(&["convert", text(&model), "-o", &at("y.gguf"), "--quiet"]), "");
    let json = done(&["quantize", &at("x.gguf"), "--type", "Q4_K_M", "-o", &at("z.gguf"), "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["bytes"].as_u64().unwrap(), fs::metadata(at("z.gguf")).unwrap().len());
    // Recipe options work with every type that `quantize` supports, not only with mixtures.
    done(&["quantize", &at("x.gguf"), "--type", "Q8_0", "--pure", "-o", &at("p.gguf")]);
    let json = done(&["convert", text(&model), "-o", &at("none.gguf"), "--dry-run", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["files"][0]["name"], "none.gguf");
    assert!(!dir.path().join("none.gguf").exists());
}

#[test]
fn a_reader_that_goes_ends_the_program_quietly() {
    let model = llama();
    for args in [&["inspect", text(&model), "--tensors"][..], &["compare", text(&model), text(&model), "--tensors"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_atombank"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_pytorch_file_without_tensors_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("empty.bin");
    // pickle: an empty dictionary, protocol 2, as torch.save wrote it before zips: magic, version, system, object, keys.
    let mut bytes = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.".to_vec();
    bytes.extend(b"\x80\x02}q\x00(X\x10\x00\x00\x00protocol_versionq\x01M\xe9\x03X\x0d\x00\x00\x00little_endianq\x02\x88X\x0a\x00\x00\x00type_sizesq\x03}q\x04(X\x05\x00\x00\x00shortq\x05K\x02X\x03\x00\x00\x00intq\x06K\x04X\x04\x00\x00\x00longq\x07K\x04uu.");
    bytes.extend(b"\x80\x02}q\x00.\x80\x02]q\x00.");
    fs::write(&file, bytes).unwrap();
    let line = refused(1, &["convert", text(&file), "-o", text(&dir.path().join("x.safetensors"))]);
    assert!(line.contains("empty.bin: expected tensors, found none"), "{line}");
}
