//! Caches that other programs have filled, in part or as this one wouldn't.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::server::{Act, COMMIT, Hub, Phase, etag};
use super::{files_below, run};
use crate::checkpoint::hub::{HubSettings, Need};

/// A cache as Python's huggingface_hub leaves it, with real files for links, and settings that never ask a hub.
fn python_cache(files: &[&str]) -> (tempfile::TempDir, HubSettings) {
    let cache = tempfile::tempdir().unwrap();
    fill(cache.path(), files);
    let variables = |name: &str| match name {
        "HF_HUB_CACHE" => Some(cache.path().to_string_lossy().into_owned()),
        "HF_HUB_OFFLINE" => Some("1".to_owned()),
        _ => None,
    };
    let settings = HubSettings::from_variables(variables).unwrap();
    (cache, settings)
}

fn fill(cache: &Path, files: &[&str]) -> PathBuf {
    let model = cache.join("models--org--model");
    let snapshot = model.join("snapshots").join(COMMIT);
    fs::create_dir_all(model.join("refs/pr")).unwrap();
    for name in ["main", "pr/1"] {
        fs::write(model.join("refs").join(name), COMMIT).unwrap();
    }
    for name in files {
        let path = snapshot.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    snapshot
}

#[test]
fn a_cache_of_another_program_is_read_without_the_hub() {
    let (cache, settings) = python_cache(&["config.json", "pytorch_model.bin"]);
    let snapshot = cache.path().join("models--org--model/snapshots").join(COMMIT);
    for name in ["hf:org/model", "hf:org/model@pr/1", &format!("hf:org/model@{COMMIT}")] {
        let run = run(name, &settings);
        assert_eq!(run.path(), snapshot, "{name}");
        assert!(run.noted("not known whether the model has README.md, added_tokens.json or"), "{:?}", run.notes);
        assert!(run.noted("HF_HUB_OFFLINE is set"), "{:?}", run.notes);
    }
    let (cache, settings) = python_cache(&["adapter_config.json", "adapter_model.safetensors"]);
    assert!(run("hf:org/model", &settings).path().starts_with(cache.path()));
    let (cache, settings) = python_cache(&["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf", "one.gguf"]);
    let snapshot = cache.path().join("models--org--model/snapshots").join(COMMIT);
    for file in ["q/m-00001-of-00002.gguf", "one.gguf"] {
        assert_eq!(run(&format!("hf:org/model/{file}"), &settings).path(), snapshot.join(file));
    }
}

#[test]
fn a_list_that_another_program_has_kept_says_what_is_missing() {
    let (cache, settings) = python_cache(&["config.json", "model.safetensors"]);
    let trees = cache.path().join("models--org--model/trees");
    fs::create_dir_all(&trees).unwrap();
    let list = |more: &str| {
        let text = format!(
            r#"{{"format_version": 1, "files": {{"config.json": {{"size": 1, "blob_id": "x"}}, "model.safetensors": {{"size": 1, "blob_id": "x"}}{more}}}}}"#
        );
        fs::write(trees.join(format!("{COMMIT}.json")), text).unwrap();
    };
    list("");
    let all = run("hf:org/model", &settings);
    assert!(all.result.is_ok());
    assert_eq!(all.notes, [""; 0]);
    list(r#", "chat_template.jinja": {"size": 1, "blob_id": "x"}"#);
    assert!(
        run("hf:org/model", &settings).noted("whether the model has chat_template.jinja, for HF_HUB_OFFLINE is set")
    );
}

#[test]
fn what_is_not_in_the_cache_is_said_in_one_line_when_offline() {
    let incomplete: [&[&str]; 4] =
        [&[], &["config.json"], &["model.safetensors"], &["config.json", "model.safetensors.index.json"]];
    for files in incomplete {
        let (cache, settings) = python_cache(files);
        let expected = format!(
            "hf:org/model: expected all of it in the cache {}, found nothing, or only a part; HF_HUB_OFFLINE is set: fetch \
             it without that first",
            cache.path().display()
        );
        assert_eq!(run("hf:org/model", &settings).message(), expected, "{files:?}");
    }
    let (_cache, settings) = python_cache(&["config.json", "model.safetensors", "m-00001-of-00002.gguf"]);
    for name in ["hf:org/model@other", "hf:org/other", "hf:org/model/x.gguf", "hf:org/model/m-00001-of-00002.gguf"] {
        assert!(run(name, &settings).message().contains("HF_HUB_OFFLINE"), "{name}");
    }
}

#[test]
fn a_reference_to_another_folder_is_not_followed() {
    let (cache, settings) = python_cache(&["config.json", "model.safetensors"]);
    fs::write(cache.path().join("models--org--model/refs/main"), "../../../etc").unwrap();
    assert!(run("hf:org/model", &settings).result.is_err());
}

const MODEL: &[(&str, &str)] =
    &[("config.json", "x"), ("model.safetensors", "x"), ("tokenizer.json", "x"), ("chat_template.jinja", "template")];

#[test]
fn what_a_part_of_a_model_may_lack_is_asked_for_once() {
    let hub = Hub::with(MODEL);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    let snapshot = fill(&settings.cache, &["config.json", "model.safetensors", "tokenizer.json"]);
    let first = run("hf:org/model", &settings);
    assert_eq!(first.path(), snapshot);
    assert_eq!(fs::read_to_string(snapshot.join("chat_template.jinja")).unwrap(), "template");
    assert_eq!(hub.fetched(), ["chat_template.jinja"]);
    let absent = settings.cache.join("models--org--model/.no_exist").join(COMMIT);
    assert_eq!(fs::read(absent.join("tokenizer_config.json")).unwrap(), b"");
    assert!(!absent.join("chat_template.jinja").exists() && !absent.join("config.json").exists());

    assert!(run("hf:org/model", &settings).result.is_ok());
    assert_eq!(hub.asked(), []);
    let offline = HubSettings { offline: Some("HF_HUB_OFFLINE"), ..settings };
    assert_eq!(run("hf:org/model", &offline).notes, [""; 0]);
}

#[test]
fn a_hub_that_is_not_there_leaves_what_the_cache_has() {
    let hub = Hub::with(MODEL);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = hub.settings(&cache);
    let snapshot = fill(&settings.cache, &["config.json", "model.safetensors"]);
    settings.endpoint = "http://127.0.0.1:9".to_owned();
    let run = run("hf:org/model", &settings);
    assert_eq!(run.path(), snapshot);
    assert!(run.noted("what the cache has is used"), "{:?}", run.notes);
    assert_eq!(run.notes.len(), 1, "{:?}", run.notes);
}

#[test]
fn a_file_that_the_hub_lists_is_not_done_without() {
    for act in [Act::Status(403, ""), Act::Flip, Act::Close] {
        let hub = Hub::with(MODEL);
        hub.acts(Phase::Get, "chat_template.jinja", &[act]);
        let cache = tempfile::tempdir().unwrap();
        let settings = hub.settings(&cache);
        fill(&settings.cache, &["config.json", "model.safetensors", "tokenizer.json"]);
        let message = run("hf:org/model", &settings).message();
        assert!(message.starts_with("hf:org/model: chat_template.jinja: "), "{message}");
    }
    // Nor where the cache has no place for it.
    let hub = Hub::with(MODEL);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    fill(&settings.cache, &["config.json", "model.safetensors", "tokenizer.json"]);
    fs::write(settings.cache.join("models--org--model/blobs"), "a file").unwrap();
    let message = run("hf:org/model", &settings).result.unwrap_err().to_string();
    assert!(message.contains("models--org--model/blobs: cannot make the folder"), "{message}");
}

#[test]
fn links_that_lead_elsewhere_are_replaced() {
    let hub = Hub::with(MODEL);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = hub.settings(&cache);
    let path = run("hf:org/model", &settings).path().to_owned();
    let link = path.join("chat_template.jinja");
    let relink = |target: &str| {
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
    };
    relink("../../blobs/nowhere");
    assert!(run("hf:org/model", &settings).result.is_ok());
    assert_eq!(fs::read_to_string(&link).unwrap(), "template");
    let right = fs::read_link(&link).unwrap();
    assert_eq!(right, Path::new("../../blobs").join(etag("chat_template.jinja", b"template")));

    relink(&format!("../../blobs/{}", etag("config.json", b"x")));
    settings.refresh = true;
    hub.asked();
    assert!(run("hf:org/model", &settings).result.is_ok());
    assert_eq!(fs::read_link(&link).unwrap(), right);
    assert_eq!(hub.fetched(), [""; 0]);
    assert!(!files_below(cache.path()).iter().any(|name| name.ends_with(".tmp")));
}

#[test]
fn a_content_of_another_length_than_its_file_is_fetched_anew() {
    let hub = Hub::with(MODEL);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    let blob = settings.cache.join("models--org--model/blobs").join(etag("model.safetensors", b"x"));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, "something else").unwrap();
    let run = run("hf:org/model", &settings);
    assert_eq!(fs::read_to_string(run.path().join("model.safetensors")).unwrap(), "x");
    assert!(run.noted("the cache has another content under its ETag"), "{:?}", run.notes);
}

#[test]
fn a_cache_that_cannot_be_written_names_its_file() {
    let hub = Hub::with(MODEL);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    fs::create_dir_all(&settings.cache).unwrap();
    fs::write(settings.cache.join("models--org--model"), "a file").unwrap();
    let message = super::Run::of("hf:org/model", &settings, Need::Model).result.unwrap_err().to_string();
    assert!(message.contains("models--org--model/blobs: cannot make the folder: "), "{message}");
    assert_eq!(message.matches("os error").count(), 1, "{message}");
}
