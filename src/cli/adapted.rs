//! Adapters of a model that runs.

use std::path::Path;

use atombank::Result;
use atombank::adapter::LinearUpdates;
use atombank::adapter::peft::Base;
use atombank::arch::ModelConfig;
use atombank::checkpoint::Checkpoint;
use atombank::convert::from_gguf;
use atombank::formats::gguf::GgufModel;

/// The updates of an adapter of the model at `model`, a folder or a GGUF.
pub(crate) fn updates(path: &Path, model: &Path, config: &ModelConfig) -> Result<LinearUpdates> {
    if model.is_file() {
        let gguf = GgufModel::open(model)?;
        if let Some((json, restored)) = from_gguf(&gguf, Some(atombank::DType::F32))? {
            return LinearUpdates::open(path, &Base::new(model, &json, &restored.plan), config);
        }
    }
    LinearUpdates::open(path, &Base::of(&Checkpoint::open(model)?), config)
}
