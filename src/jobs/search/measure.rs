//! What a search makes small: the loss of a merged model on a text or rows, or its divergence from another model.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;

use super::super::{MergeSettings, merge};
use super::SearchSettings;
use crate::arch::ModelConfig;
use crate::checkpoint::is_tokenizer_file;
use crate::error::{Error, Finding, Result};
use crate::imatrix::read_text;
use crate::json;
use crate::merge::vocabulary::folder_of;
use crate::model::{Decoder, LanguageModel, ModelWeights, Reference, Residence, Sequence, TextEncoder, mean_loss};
use crate::output::Output;
use crate::train::{DataSettings, sequences_of};

/// What every trial is measured by.
pub(super) struct Measure<'a> {
    sequences: Vec<Sequence>,
    reference: Option<Reference>,
    device: &'a Device,
    pub(super) notes: Vec<String>,
}

impl<'a> Measure<'a> {
    /// What the merges of `settings` are measured by. `tried` is one of them, for a decoder.
    pub(super) fn open(settings: &SearchSettings, tried: &MergeSettings, device: &'a Device) -> Result<Self> {
        let base = &settings.merge.base;
        let mut planned = tried.clone();
        planned.output.dry_run = true;
        let made = merge(&planned, &|_| ())?.output;
        // What is merged may have another vocabulary than the base.
        let own = other_tokenizer(&made, base)?;
        let (model, folder) = match &own {
            None => (LanguageModel::open(base, Residence::Streamed, device)?, base.as_path()),
            Some(folder) => {
                let (decoder, encoder) = (decoder(&made, base, device)?, TextEncoder::open(folder.path())?);
                (LanguageModel { decoder, encoder }, folder.path())
            }
        };
        let (mut sequences, mut notes) = (Vec::new(), Vec::new());
        if let Some(path) = &settings.data {
            let data = DataSettings { max_length: settings.ctx, ..DataSettings::of(path) };
            (sequences, notes) = sequences_of(&model, folder, &data)?;
        }
        if let Some(path) = &settings.text {
            sequences.extend(chunks(&model, path, settings.ctx)?);
        }
        if let Some(most) = settings.chunks {
            sequences.truncate(most);
        }
        notes
            .extend(sequences.iter().map(|s| s.ids.len()).max().and_then(|longest| model.decoder.length_note(longest)));
        drop(model);
        let open = |path: &Path| {
            let other = LanguageModel::open(path, Residence::Streamed, device)?;
            Reference::new(other.decoder, &sequences)
        };
        let reference = settings.kl.as_deref().map(open).transpose()?;
        Ok(Self { sequences, reference, device, notes })
    }

    /// The number of tokens that count.
    pub(super) fn tokens(&self) -> usize {
        self.sequences.iter().map(Sequence::target_count).sum()
    }

    /// The loss of the model that `settings` makes, which is never written; `None` where it has no finite numbers.
    pub(super) fn of(&self, settings: &MergeSettings) -> Result<Option<f64>> {
        match self.measured(settings) {
            Ok(loss) => Ok(Some(loss).filter(|loss| loss.is_finite())),
            Err(Error::NotFinite(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn measured(&self, settings: &MergeSettings) -> Result<f64> {
        let made = merge(settings, &|_| ())?.output;
        let decoder = decoder(&made, &settings.base, self.device)?;
        match &self.reference {
            Some(reference) => reference.divergence(&decoder, &self.sequences),
            None => mean_loss(&decoder, &self.sequences),
        }
    }
}

/// A merged model that is not written, to be run. `base` is for messages.
fn decoder(made: &Output, base: &Path, device: &Device) -> Result<Decoder> {
    let path = base.join("config.json");
    let config = made.sidecars.files.get("config.json").map_or(&[][..], Vec::as_slice);
    let config = json::read(config, || Finding::new(&path, "").expected("a JSON object"))?;
    let config = ModelConfig::from_json(&path, &config)?;
    Ok(Decoder::new(ModelWeights::open(base, &config, &made.plan, Residence::Streamed, device)?))
}

/// A folder with the tokenizer of a merged model, where it isn't that of the folder `base`.
fn other_tokenizer(made: &Output, base: &Path) -> Result<Option<tempfile::TempDir>> {
    let files: BTreeMap<String, Vec<u8>> = made
        .sidecars
        .files
        .iter()
        .filter(|(name, _)| name.as_str() == "config.json" || is_tokenizer_file(name))
        .map(|(name, bytes)| (name.clone(), bytes.clone()))
        .collect();
    let is_own = |(name, bytes): (&String, &Vec<u8>)| {
        !is_tokenizer_file(name) || std::fs::read(base.join(name)).is_ok_and(|own| own == *bytes)
    };
    if !base.is_dir() || files.iter().all(is_own) {
        return Ok(None);
    }
    folder_of(&files).map(Some)
}

/// The tokens of a text in pieces of `length`, of which all but the first carry loss.
fn chunks(model: &LanguageModel, path: &Path, length: usize) -> Result<Vec<Sequence>> {
    let ids = model.encoder.encode_whole(&read_text(path)?)?;
    if ids.len() < 2 {
        return Err(Finding::new(path, "text").expected("at least two tokens").found(ids.len()).mismatch());
    }
    let pieces = ids.chunks(length).filter(|piece| piece.len() > 1);
    Ok(pieces.map(|piece| Sequence::completed(piece.to_vec(), 0, Vec::new())).collect())
}
