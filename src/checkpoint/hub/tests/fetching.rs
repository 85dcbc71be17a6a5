//! Which files are fetched, and when.

use std::fs;
use std::time::Duration;

use super::super::name::Name;
use super::server::{Act, COMMIT, Hub, Phase};
use super::{Run, run};
use crate::checkpoint::hub::{HubSettings, Need};

const MODEL: &[(&str, &str)] = &[
    (".gitattributes", "x"),
    ("README.md", "# A model"),
    ("config.json", "{}"),
    ("tokenizer.json", "{}"),
    ("1_Pooling/config.json", "{}"),
    ("additional_chat_templates/tool_use.jinja", "tools"),
    ("odd name.txt", "odd"),
    ("model.safetensors.index.json", r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#),
    ("model-1.safetensors", "first"),
    ("model-2.safetensors", "second"),
    ("model.fp16.safetensors", "half"),
    ("pytorch_model.bin", "the same again"),
    ("onnx/model.onnx", "and again"),
];
const UNWANTED: [&str; 4] = [".gitattributes", "model.fp16.safetensors", "pytorch_model.bin", "onnx/model.onnx"];

#[test]
fn a_model_is_fetched_once_and_then_read_from_the_cache() {
    let hub = Hub::with(MODEL);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    let first = run("hf:org/model", &settings);
    let model = first.result.as_ref().unwrap();
    assert_eq!(model.id, "org/model");
    assert_eq!(model.path, cache.path().join("hub/models--org--model/snapshots").join(COMMIT));
    for (name, text) in MODEL {
        let found = fs::read_to_string(model.path.join(name)).ok();
        assert_eq!(found.as_deref(), (!UNWANTED.contains(name)).then_some(*text), "{name}");
    }
    let refs = cache.path().join("hub/models--org--model/refs");
    assert_eq!(fs::read_to_string(refs.join("main")).unwrap(), COMMIT);
    assert_eq!(fs::read_dir(refs).unwrap().count(), 1);
    assert!(first.done.contains(&("model-2.safetensors".to_owned(), 6)), "{:?}", first.done);
    assert_eq!(first.notes, [""; 0]);
    // One question about each file.
    let asked = hub.asked();
    let about = |name: &str| asked.iter().filter(|asked| asked.phase == Phase::Meta && asked.file == name).count();
    assert_eq!(about("model-1.safetensors"), 1);

    for name in ["hf:org/model", &format!("hf:org/model@{COMMIT}")] {
        assert_eq!(&run(name, &settings).result.unwrap(), model);
    }
    assert_eq!(hub.asked(), [], "what is there is not asked for");
}

#[test]
fn what_a_broken_off_download_left_out_is_fetched_later() {
    let hub = Hub::with(MODEL);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    let path = run("hf:org/model", &settings).path().to_owned();
    fs::remove_file(path.join("model-2.safetensors")).unwrap();
    hub.asked();
    let offline = HubSettings { offline: Some("HF_HUB_OFFLINE"), ..settings.clone() };
    let message = run("hf:org/model", &offline).message();
    assert!(message.contains("found nothing, or only a part; HF_HUB_OFFLINE is set"), "{message}");
    assert_eq!(hub.asked(), []);
    assert!(run("hf:org/model", &settings).result.is_ok());
    assert_eq!(fs::read_to_string(path.join("model-2.safetensors")).unwrap(), "second");
    // Its content is still there: only the link was gone.
    assert_eq!(hub.fetched(), [""; 0]);
}

#[test]
fn a_new_commit_of_the_same_contents_fetches_nothing_twice() {
    let hub = Hub::with(MODEL);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = hub.settings(&cache);
    assert!(run("hf:org/model", &settings).result.is_ok());
    let moved = "b".repeat(40);
    {
        let mut state = hub.state.lock().unwrap();
        state.commit.clone_from(&moved);
        state.files.insert("model-2.safetensors".to_owned(), b"changed".to_vec());
    }
    hub.asked();
    // That main has moved is only noticed by who asks.
    assert!(run("hf:org/model", &settings).path().ends_with(COMMIT));
    assert_eq!(hub.asked(), []);
    settings.refresh = true;
    let second = run("hf:org/model", &settings);
    assert!(second.path().ends_with(&moved));
    assert_eq!(hub.fetched(), ["model-2.safetensors"]);
    assert_eq!(fs::read_to_string(second.path().join("model-2.safetensors")).unwrap(), "changed");
    assert_eq!(fs::read_to_string(second.path().join("model-1.safetensors")).unwrap(), "first");
    settings.refresh = false;
    assert!(run("hf:org/model", &settings).path().ends_with(&moved));

    settings = HubSettings { refresh: true, offline: Some("HF_HUB_OFFLINE"), ..settings };
    let message = run("hf:org/model", &settings).message();
    assert_eq!(message, "hf:org/model: refresh: expected a hub to ask, found HF_HUB_OFFLINE in the environment");
}

#[test]
fn of_a_model_and_an_adapter_a_command_gets_what_it_needs() {
    let both = [
        ("config.json", "{}"),
        ("model.safetensors", "weights"),
        ("adapter_config.json", "{}"),
        ("adapter_model.safetensors", "factors"),
        ("adapter_model.bin", "factors"),
    ];
    let hub = Hub::with(&both);
    let (model, adapter) = ("model.safetensors", "adapter_model.safetensors");
    for (need, wanted) in [
        (Need::Everything, vec![adapter, model]),
        (Need::Model, vec![model]),
        (Need::Adapter, vec![adapter]),
        (Need::Vocabulary, vec![]),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let settings = hub.settings(&cache);
        assert!(Run::of("hf:org/model", &settings, need).result.is_ok());
        let mut fetched = hub.fetched();
        fetched.retain(|name| !name.ends_with(".json"));
        assert_eq!(fetched, wanted, "{need:?}");
        assert!(Run::of("hf:org/model", &settings, need).result.is_ok());
        assert_eq!(hub.asked(), [], "{need:?}");
        // Whoever needs more of it gets more.
        let all = Run::of("hf:org/model", &settings, Need::Everything);
        assert!(all.path().join(model).is_file() && all.path().join(adapter).is_file(), "{need:?}");
        hub.asked();
    }
}

#[test]
fn shards_without_an_index_are_a_model() {
    let hub = Hub::with(&[
        ("config.json", "{}"),
        ("model-00001-of-00002.safetensors", "1"),
        ("model-00002-of-00002.safetensors", "2"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    assert!(run("hf:org/model", &settings).path().join("model-00002-of-00002.safetensors").is_file());
    hub.asked();
    assert!(run("hf:org/model", &settings).result.is_ok());
    assert_eq!(hub.asked(), []);
}

#[test]
fn of_several_gguf_files_one_is_chosen() {
    let hub = Hub::with(&[("README.md", "x"), ("m-q4.gguf", "four"), ("m-q8.gguf", "eight")]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    let message = run("hf:org/model", &settings).message();
    assert!(message.contains("found 2 GGUF files: "), "{message}");
    assert!(message.contains("choose one: hf:org/model/m-q"), "{message}");
    let model = run("hf:org/model/m-q8.gguf", &settings).result.unwrap();
    assert_eq!(fs::read_to_string(&model.path).unwrap(), "eight");
    assert_eq!(hub.fetched(), ["m-q8.gguf"]);
    assert_eq!(run("hf:org/model/m-q8.gguf", &settings).result.unwrap(), model);
    assert_eq!(hub.asked(), []);
    let message = run("hf:org/model/m-q5.gguf", &settings).message();
    assert!(message.contains("m-q5.gguf: expected"), "{message}");
}

#[test]
fn a_gguf_alone_needs_no_name_and_a_split_one_is_one() {
    let alone: &[(&str, &str)] = &[("only.gguf", "one"), ("README.md", "x"), ("mmproj-only.gguf", "pictures")];
    let split: &[(&str, &str)] =
        &[("q/x-00001-of-00003.gguf", "1"), ("q/x-00002-of-00003.gguf", "2"), ("q/x-00003-of-00003.gguf", "3")];
    for (files, path, fetched) in [(alone, "only.gguf", 1), (split, "q/x-00001-of-00003.gguf", 3)] {
        let hub = Hub::with(files);
        let cache = tempfile::tempdir().unwrap();
        let settings = hub.settings(&cache);
        assert!(run("hf:org/model", &settings).path().ends_with(path));
        assert_eq!(hub.fetched().len(), fetched);
        assert!(run("hf:org/model", &settings).path().ends_with(path));
        assert_eq!(hub.asked(), []);
        let offline = HubSettings { offline: Some("HF_HUB_OFFLINE"), ..settings };
        for name in ["hf:org/model", &format!("hf:org/model/{path}")] {
            assert!(run(name, &offline).path().ends_with(path), "{name}");
        }
    }
    let hub = Hub::with(&[("x-00001-of-00003.gguf", "1"), ("x-00003-of-00003.gguf", "3")]);
    for name in ["hf:org/model", "hf:org/model/x-00001-of-00003.gguf"] {
        let message = run(name, &hub.settings(&tempfile::tempdir().unwrap())).message();
        assert!(message.contains("x-00001-of-00003.gguf: expected 3 parts, found 2"), "{message}");
    }
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let hub = Hub::with(&[("config.json", "{}"), ("model.safetensors", "weights of some length")]);
    hub.acts(Phase::Large, "model.safetensors", &[Act::Slow(2, Duration::from_millis(100))]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    let runs: Vec<Run> = std::thread::scope(|scope| {
        let start = || scope.spawn(|| run("hf:org/model", &settings));
        let both = [start(), start()];
        both.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for run in &runs {
        assert_eq!(fs::read_to_string(run.path().join("model.safetensors")).unwrap(), "weights of some length");
    }
    let large = hub.asked().iter().filter(|asked| asked.phase == Phase::Large).count();
    assert_eq!(large, 1);
    assert!(runs.iter().any(|run| run.noted("model.safetensors: another process is fetching it: waiting")));
}

#[test]
fn one_that_stands_still_with_the_lock_is_not_waited_for_for_ever() {
    let hub = Hub::with(&[("config.json", "{}"), ("model.safetensors", "weights")]);
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    let snapshot = settings.cache.join("models--org--model/snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    let name = Name::parse("hf:org/model").unwrap();
    let store = super::super::cache::Store::new(&settings.cache, &name);
    let lock = store.lock(&super::server::etag("model.safetensors", b"weights"));
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let held = fs::File::create(&lock).unwrap();
    held.lock().unwrap();
    let hasty = HubSettings { download_timeout: Duration::from_millis(20), ..settings.clone() };
    let message = run("hf:org/model", &hasty).result.unwrap_err().to_string();
    assert!(message.contains("lock: expected another process to finish its download"), "{message}");
    drop(held);
    assert!(run("hf:org/model", &settings).result.is_ok());
}

#[test]
fn names_of_another_form_are_refused() {
    let settings = Hub::with(&[]).settings(&tempfile::tempdir().unwrap());
    for (name, expected) in [
        ("org/model", "found another beginning"),
        ("hf:", "found a name that the hub doesn't allow"),
        ("hf:org/", "found a name that the hub doesn't allow"),
        ("hf:../model", "found a name that the hub doesn't allow"),
        ("hf:./model", "found a name that the hub doesn't allow"),
        ("hf:org--x/model", "found a name that the hub doesn't allow"),
        ("hf:org/mo del", "found a name that the hub doesn't allow"),
        ("hf:org/model@", "found a revision that is no branch, tag or commit"),
        ("hf:org/model@../x", "found a revision that is no branch, tag or commit"),
        ("hf:org/model/config.json", "found a file that is no GGUF"),
        ("hf:org/model/../x.gguf", "found a file that is no GGUF"),
    ] {
        let message = run(name, &settings).result.unwrap_err().to_string();
        assert!(message.starts_with(name) && message.contains(expected), "{message}");
    }
    assert_eq!(Name::parse("hf:gpt2@v1").unwrap().id, "gpt2");
    assert!(super::is_hub_name("hf:org/model") && !super::is_hub_name("./hf:org/model"));
}

#[test]
fn names_in_settings_have_no_revision_and_no_file() {
    for (text, expected) in [
        ("hf:org/name", "org/name"),
        ("hf:org/name@main", "org/name"),
        ("hf:org/name/model-Q4_K_M.gguf", "org/name"),
        ("../base", "../base"),
        ("org/name", "org/name"),
    ] {
        assert_eq!(super::plain_name(text), expected);
    }
}
