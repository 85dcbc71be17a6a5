//! Hubs that mean harm: paths in the place of names, and other servers that want the token.

use std::fs;

use super::server::{Act, COMMIT, Hub, Phase};
use super::{files_below, run};
use crate::error::Error;

const FILES: &[(&str, &str)] = &[("config.json", "{}"), ("model.safetensors", "weights")];

#[test]
fn names_etags_and_commits_that_are_paths_are_refused_before_anything_is_written() {
    type Make = fn(&Hub);
    let cases: &[(Make, &str)] = &[
        (|hub| more(hub, "../evil.txt"), "expected names of files that stay in their folder"),
        (|hub| more(hub, "/evil.json"), "found \"/evil.json\""),
        (|hub| more(hub, "a/../../evil.json"), "found \"a/../../evil.json\""),
        (|hub| more(hub, "evil\0.json"), "found \"evil\\0.json\""),
        (|hub| hub.acts(Phase::Api, "", &[info("../..")]), "expected a commit of 40 hexadecimal digits"),
        (
            |hub| hub.acts(Phase::Meta, "config.json", &[Act::Header("X-Repo-Commit", "../..")]),
            "expected the file of commit 0123",
        ),
        (
            |hub| hub.acts(Phase::Meta, "config.json", &[Act::Header("ETag", "\"../../../evil\"")]),
            "expected an ETag of letters and digits",
        ),
        (|hub| hub.acts(Phase::Meta, "config.json", &[Act::Header("ETag", "\"/evil\"")]), "found \"\\\"/evil\\\"\""),
        (|hub| hub.acts(Phase::Get, "config.json", &[Act::Header("ETag", "\"../../../evil\"")]), "that it gave before"),
        (
            |hub| hub.acts(Phase::Get, "config.json", &[Act::Header("X-Repo-Commit", "../..")]),
            "expected the file of commit 0123",
        ),
        (
            |hub| hub.acts(Phase::Meta, "model.safetensors", &[Act::Header("X-Linked-ETag", "\"../evil\"")]),
            "expected an ETag",
        ),
        (|hub| hub.acts(Phase::Meta, "config.json", &[Act::Header("ETag", "")]), "expected an ETag"),
        (|hub| hub.acts(Phase::Meta, "config.json", &[Act::Header("X-Repo-Commit", "")]), "with X-Repo-Commit"),
        (
            |hub| hub.acts(Phase::Api, "", &[Act::Body("[1, 2".to_owned())]),
            "expected JSON with a model's commit and files",
        ),
        (|hub| hub.acts(Phase::Api, "", &[Act::Body("[".repeat(1_000_000))]), "expected JSON"),
        (|hub| hub.acts(Phase::Api, "", &[Act::Body("{\"siblings\": []}".to_owned())]), "sha"),
    ];
    for (make, expected) in cases {
        let hub = Hub::with(FILES);
        make(&hub);
        let cache = tempfile::tempdir().unwrap();
        let run = run("hf:org/model", &hub.settings(&cache));
        assert!(run.message().contains(expected), "{expected}: {}", run.message());
        assert!(matches!(run.result, Err(Error::Format(_))), "{expected}");
        let left = files_below(cache.path());
        assert!(!left.iter().any(|name| name.contains("evil") || name.contains("snapshots/../")), "{left:?}");
        assert!(left.iter().all(|name| name.starts_with("hub/models--org--model/")), "{left:?}");
        assert_eq!(run.notes, [""; 0], "{expected}");
    }
}

fn more(hub: &Hub, name: &str) {
    hub.state.lock().unwrap().more_names = vec![name.to_owned()];
}

fn info(commit: &str) -> Act {
    Act::Body(format!(r#"{{"sha": "{commit}", "siblings": [{{"rfilename": "config.json"}}]}}"#))
}

#[test]
fn an_index_that_leads_elsewhere_is_refused_before_weights_are_fetched() {
    for (index, expected) in [
        (r#"{"weight_map": {"a": "../../x.safetensors"}}"#, "expected names of files in this folder"),
        (
            r#"{"weight_map": {"a": "gone.safetensors"}}"#,
            "expected shards that are in the repository, found \"gone.safetensors\"",
        ),
    ] {
        let hub = Hub::with(&[("config.json", "{}"), ("model.safetensors.index.json", index)]);
        let cache = tempfile::tempdir().unwrap();
        let message = run("hf:org/model", &hub.settings(&cache)).result.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let store = Hub::with(FILES);
    let hub = Hub::with(FILES);
    {
        let mut state = hub.state.lock().unwrap();
        state.token = Some("hf_secret");
        // Another port of the same host is another server.
        state.store = Some(store.endpoint.clone());
    }
    let cache = tempfile::tempdir().unwrap();
    let mut settings = hub.settings(&cache);
    settings.token = Some("hf_secret".to_owned());
    let run = run("hf:org/model", &settings);
    assert_eq!(fs::read_to_string(run.path().join("model.safetensors")).unwrap(), "weights");
    let asked = store.asked();
    assert!(!asked.is_empty() && asked.iter().all(|asked| asked.token.is_none()), "{asked:?}");
    let asked = hub.asked();
    assert!(asked.iter().all(|asked| asked.token.as_deref() == Some("Bearer hf_secret")), "{asked:?}");
}

#[test]
fn refusals_of_the_hub_say_what_to_do() {
    let hub = Hub::with(FILES);
    hub.state.lock().unwrap().token = Some("hf_secret");
    let cache = tempfile::tempdir().unwrap();
    let mut settings = hub.settings(&cache);
    let message = run("hf:org/model", &settings).message();
    let expected = "hf:org/model: expected access to it, found status 401; it is private, or to be asked for on its \
                    page, or not there: set HF_TOKEN";
    assert_eq!(message, expected);
    settings.token = Some("hf_other".to_owned());
    let message = run("hf:org/model", &settings).message();
    assert!(message.contains("found status 401; the token in use has no access"), "{message}");
    assert!(!message.contains("hf_other"), "{message}");
    settings.token = Some("hf_secret".to_owned());
    assert!(run("hf:org/model", &settings).result.is_ok());

    for (name, expected) in [
        ("hf:org/gone", "hf:org/gone: expected a model at http://127.0.0.1"),
        ("hf:org/model@gone", "with revision \"gone\", found status 404; the model is there, that revision isn't"),
    ] {
        let message = run(name, &settings).message();
        assert!(message.contains(expected), "{message}");
    }
    hub.acts(Phase::Api, "", &[Act::Status(403, "X-Error-Code: GatedRepo")]);
    settings.token = None;
    hub.state.lock().unwrap().token = None;
    let message = run("hf:org/model@main", &hub.settings(&tempfile::tempdir().unwrap())).message();
    assert!(message.contains("ask for it on its page http://127.0.0.1"), "{message}");

    settings.endpoint = "http://127.0.0.1:9".to_owned();
    let error = run("hf:org/model@other", &settings);
    assert!(
        error.message().starts_with("hf:org/model@other: cannot download: http://127.0.0.1:9/api"),
        "{}",
        error.message()
    );
    assert_eq!(error.message().matches("refused").count(), 1, "{}", error.message());
    assert!(matches!(error.result, Err(Error::Io { .. })));
}

#[test]
fn a_commit_that_is_asked_for_is_the_one_that_comes() {
    let hub = Hub::with(FILES);
    hub.acts(Phase::Api, "", &[info(&"f".repeat(40))]);
    let cache = tempfile::tempdir().unwrap();
    let message = run(&format!("hf:org/model@{COMMIT}"), &hub.settings(&cache)).message();
    assert!(message.contains(&format!("expected commit {COMMIT}")), "{message}");
}
