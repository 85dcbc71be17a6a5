//! Models that are looked at: headers by ranges, no weights.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::server::{Act, Asked, COMMIT, Hub, Phase};
use super::{files_below, run};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::hub::{HubSettings, Looked, Need, Outline, look};
use crate::error::Result;
use crate::formats::gguf::{GgufModel, Metadata};
use crate::formats::safetensors::SafetensorsFile;
use crate::output::{Destination, Output};
use crate::plan::Plan;
use crate::source::Source;

/// A file of one tensor of `elems` numbers, all of them 1.
fn safetensors(name: &str, elems: usize) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[{elems}],"data_offsets":[0,{}]}}}}"#, elems * 4);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..elems).flat_map(|_| 1f32.to_le_bytes()));
    bytes
}

fn sharded() -> Hub {
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let hub = Hub::with(&[("config.json", "{}"), ("README.md", "# A model"), ("model.safetensors.index.json", index)]);
    for (name, tensor) in [("model-1.safetensors", "a"), ("model-2.safetensors", "b")] {
        hub.state.lock().unwrap().files.insert(name.to_owned(), safetensors(tensor, 300_000));
    }
    hub
}

/// The outline of the model; `None` where all of it is there.
fn outlined(settings: &HubSettings) -> Result<Option<Outline>> {
    Ok(match look("hf:org/model", settings, Need::Everything, &|_| ())? {
        Looked::Whole(_) => None,
        Looked::Outline(outline) => Some(*outline),
    })
}

#[test]
fn of_a_model_that_is_looked_at_the_headers_are_fetched() {
    let hub = sharded();
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    let made = outlined(&settings).unwrap().unwrap();
    let large: Vec<_> = hub.asked().into_iter().filter(|asked| asked.phase == Phase::Large).collect();
    assert_eq!(large.len(), 2);
    let first = safetensors("a", 300_000).len() / 64;
    assert!(large.iter().all(|asked| asked.range == Some(format!("bytes=0-{}", first - 1))), "{large:?}");

    let folder = Checkpoint::open(&made.model.path).unwrap();
    let shapes: Vec<_> = folder.weights().tensors.iter().map(|tensor| tensor.shape.clone()).collect();
    assert_eq!(shapes, [[300_000], [300_000]]);
    assert!(made.model.path.join("README.md").is_file());
    assert!(!made.values_were_wanted());
    // Values aren't there: whoever asks for them is told, and noticed.
    let message = folder.weights().tensors[1].read().unwrap_err().to_string();
    assert!(
        message.contains("model-2.safetensors: expected the values of its tensors, found its header alone"),
        "{message}"
    );
    assert!(made.values_were_wanted());
    let real = settings.cache.join("models--org--model/snapshots").join(COMMIT).join("model-2.safetensors");
    assert!(made.with_real_paths(&message).starts_with(&*real.to_string_lossy()));

    let left: Vec<_> = files_below(cache.path())
        .into_iter()
        .filter(|name| name.contains("safetensors") && !name.contains(".no_exist"))
        .collect();
    assert!(left.iter().all(|name| name.ends_with("index.json")), "{left:?}");
    let path: PathBuf = made.model.path.clone();
    drop(folder);
    // The model itself has values. The hub isn't asked again what it has said, and the branch may have moved meanwhile.
    hub.asked();
    hub.acts(Phase::Api, "", &[Act::Status(500, "")]);
    let whole = made.fetch(&settings, &|_| ()).unwrap().path;
    assert!(!path.exists());
    let asked = hub.asked();
    assert!(asked.iter().all(|asked| !matches!(asked.phase, Phase::Api | Phase::Meta)), "{asked:?}");
    // Nor is it asked for the bytes that came with the headers.
    assert!(asked.iter().all(|asked| asked.range == Some(format!("bytes={first}-"))), "{asked:?}");
    assert_eq!(whole, run("hf:org/model", &settings).path());
    assert_eq!(Checkpoint::open(&whole).unwrap().weights().tensors[1].read().unwrap()[..2], [1., 1.]);
    assert!(outlined(&settings).unwrap().is_none(), "nothing is left to fetch");
}

#[test]
fn headers_longer_than_the_first_range_and_servers_without_ranges_are_read() {
    let hub = Hub::with(&[("config.json", "{}")]);
    let long = safetensors(&"n".repeat(200_000), 10);
    hub.state.lock().unwrap().files.insert("model.safetensors".to_owned(), long.clone());
    for act in [Act::Well, Act::NoRange, Act::Truncate(4)] {
        hub.acts(Phase::Large, "model.safetensors", &[act.clone(), Act::Well]);
        let cache = tempfile::tempdir().unwrap();
        let made = outlined(&hub.settings(&cache)).unwrap().unwrap();
        let found = std::fs::read(made.model.path.join("model.safetensors")).unwrap();
        assert_eq!(found.len(), long.len(), "{act:?}");
        assert_eq!(found[..found.len() - 40], long[..long.len() - 40]);
    }
}

/// A GGUF with a key of so many bytes, and one tensor.
fn gguf(key: usize) -> Vec<u8> {
    let mut metadata = Metadata::new("");
    metadata.insert("general.architecture", "llama");
    metadata.insert("general.description", "x".repeat(key).as_str());
    let path = tempfile::tempdir().unwrap();
    let source = path.path().join("a.safetensors");
    fs::write(&source, safetensors("w", 300_000)).unwrap();
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&source).unwrap());
    let made = Output::gguf(metadata, Plan::taking(&source), Vec::new());
    let out = path.path().join("a.gguf");
    made.write(&Destination::new(&out), &|_| ()).unwrap();
    fs::read(out).unwrap()
}

#[test]
fn of_a_gguf_as_much_is_fetched_as_its_header_has() {
    for key in [10, 400_000] {
        let hub = Hub::with(&[]);
        hub.state.lock().unwrap().files.insert("a.gguf".to_owned(), gguf(key));
        for act in [Act::Well, Act::NoRange] {
            hub.acts(Phase::Large, "a.gguf", std::slice::from_ref(&act));
            let settings = hub.settings(&tempfile::tempdir().unwrap());
            let made = outlined(&settings).unwrap().unwrap();
            let model = GgufModel::open(&made.model.path).unwrap();
            assert_eq!(model.metadata().text("general.description").unwrap().len(), key);
            assert_eq!(model.tensors()[0].info().shape, [300_000]);
            assert!(!made.values_were_wanted());
            let _ = model.tensors()[0].rows(0..1);
            assert!(made.values_were_wanted());
        }
        let asked = |asked: &Asked| asked.range.clone().unwrap();
        let ranges: Vec<_> = hub.asked().iter().filter(|asked| asked.phase == Phase::Large).map(asked).collect();
        // Twice the same, and little of the values.
        assert_eq!(ranges[..ranges.len() / 2], ranges[ranges.len() / 2..]);
        assert_eq!(ranges.len() / 2, if key == 10 { 1 } else { 4 }, "{ranges:?}");
        let end = |range: &String| range.split_once('-').unwrap().1.parse::<usize>().unwrap();
        assert!(ranges.iter().all(|range| end(range) < key + 400_000), "{ranges:?}");
    }
}

#[test]
fn what_has_no_such_header_is_fetched_whole() {
    for files in [
        &[("config.json", "{}"), ("pytorch_model.bin", "x")][..],
        &[("only.gguf", "x")],
        &[("config.json", "{}"), ("model.safetensors", "no header of safetensors")],
        &[("config.json", "{}"), ("model.safetensors", "")],
        &[("adapter_config.json", "{}"), ("adapter_model.bin", "x")],
    ] {
        let hub = Hub::with(files);
        let cache = tempfile::tempdir().unwrap();
        assert!(outlined(&hub.settings(&cache)).unwrap().is_none());
        assert_eq!(hub.asked().iter().filter(|asked| asked.phase == Phase::Api).count(), 1);
        assert!(run("hf:org/model", &hub.settings(&cache)).result.is_ok());
        assert_eq!(hub.asked(), []);
    }
}

#[test]
fn servers_that_refuse_ranges_of_headers_still_give_the_file() {
    let hub = Hub::with(&[("config.json", "{}")]);
    hub.state.lock().unwrap().files.insert("model.safetensors".to_owned(), safetensors("a", 10));
    hub.acts(Phase::Large, "model.safetensors", &[Act::Status(416, ""), Act::Well]);
    assert!(outlined(&hub.settings(&tempfile::tempdir().unwrap())).unwrap().is_none());
    // One that fails altogether isn't asked for the file after that.
    hub.acts(Phase::Large, "model.safetensors", &[Act::Status(503, "")]);
    hub.asked();
    let message = outlined(&hub.settings(&tempfile::tempdir().unwrap())).err().unwrap().to_string();
    assert!(message.contains("status 503"), "{message}");
    assert_eq!(hub.asked().iter().filter(|asked| asked.phase == Phase::Large).count(), 6);
}
