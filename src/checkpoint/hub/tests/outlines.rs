//! Models that are looked at: headers by ranges, no weights.

use std::path::PathBuf;

use super::server::{Act, Hub, Phase};
use super::{files_below, run};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::hub::{HubSettings, Need, Outline, outline};
use crate::error::Result;

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

fn outlined(settings: &HubSettings) -> Result<Option<Outline>> {
    outline("hf:org/model", settings, Need::Everything, &|_| ())
}

#[test]
fn of_a_model_that_is_looked_at_the_headers_are_fetched() {
    let hub = sharded();
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(&cache);
    let made = outlined(&settings).unwrap().unwrap();
    let large: Vec<_> = hub.asked().into_iter().filter(|asked| asked.phase == Phase::Large).collect();
    assert_eq!(large.len(), 2);
    assert!(large.iter().all(|asked| asked.range.as_deref() == Some("bytes=0-131071")), "{large:?}");

    let folder = Checkpoint::open(&made.model.path).unwrap();
    let shapes: Vec<_> = folder.weights().tensors.iter().map(|tensor| tensor.shape.clone()).collect();
    assert_eq!(shapes, [[300_000], [300_000]]);
    assert!(made.model.path.join("README.md").is_file());
    assert!(!made.values_were_read());
    // Values aren't there, and whoever reads them is noticed.
    let _ = folder.weights().tensors[1].read();
    assert!(made.values_were_read());

    let left: Vec<_> = files_below(cache.path())
        .into_iter()
        .filter(|name| name.contains("safetensors") && !name.contains(".no_exist"))
        .collect();
    assert!(left.iter().all(|name| name.ends_with("index.json")), "{left:?}");
    let path: PathBuf = made.model.path.clone();
    drop((folder, made));
    assert!(!path.exists());
    // The model itself has values.
    let whole = run("hf:org/model", &settings);
    assert_eq!(Checkpoint::open(whole.path()).unwrap().weights().tensors[1].read().unwrap()[..2], [1., 1.]);
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

#[test]
fn what_has_no_such_header_is_left_to_be_fetched() {
    for files in [
        &[("config.json", "{}"), ("pytorch_model.bin", "x")][..],
        &[("only.gguf", "x")],
        &[("adapter_config.json", "{}"), ("adapter_model.safetensors", "x")],
    ] {
        let hub = Hub::with(files);
        assert!(outlined(&hub.settings(&tempfile::tempdir().unwrap())).unwrap().is_none());
        assert_eq!(hub.fetched(), [""; 0]);
    }
    let hub = Hub::with(&[("config.json", "{}"), ("model.safetensors", "no header of safetensors")]);
    let cache = tempfile::tempdir().unwrap();
    let message = outlined(&hub.settings(&cache)).unwrap_err().to_string();
    assert!(message.contains("model.safetensors: expected a header of at most 16 bytes"), "{message}");
}
