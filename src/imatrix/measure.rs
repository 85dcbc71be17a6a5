//! Measures importance: a forward pass over chunks of a text that sums the squares of each weight's input activations.
//!
//! Every chunk is a separate text, and all have the same number of tokens. If the tokenizer puts BOS before texts, it
//! replaces the first token of each chunk. Each of the model's layers is read once for all chunks that fit into
//! [`MAX_STATE_BYTES`], so memory is bounded for models of any size.
//!
//! Reference: llama.cpp `tools/imatrix/imatrix.cpp` (`collect_imatrix`, `compute_imatrix`), with two differences: sums
//! are kept in f64 and rounded once, and one chunk is enough where the reference requires two.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::{Measurement, Sums};
use crate::arch::{LinearLayer, ModelConfig, Module};
use crate::error::{Finding, IoContext, Result};
use crate::model::{Batch, Hook, LanguageModel, Sequence};

/// Memory for hidden states and masks of the chunks that go through the layers together, in bytes.
const MAX_STATE_BYTES: usize = 512 << 20;

/// The output head's name.
const OUTPUT: &str = "output.weight";

/// The settings of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The number of tokens in a chunk.
    pub chunk_size: u32,
    /// The largest number of chunks; `None` for all chunks of the text. Tokens after the last whole chunk are left out.
    pub chunks: Option<u32>,
    /// Whether the output head is measured as well. A head tied to the embeddings has no entry.
    pub process_output: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { chunk_size: 512, chunks: None, process_output: false }
    }
}

/// Reads a text. One newline at its end is ignored, as in llama.cpp.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::Format`] where it isn't UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let mut text = String::from_utf8(std::fs::read(path).at(path, "read")?).map_err(|error| {
        let found = format!("another byte at {}", error.utf8_error().valid_up_to());
        Finding::new(path, "text").expected("UTF-8").found(found).format()
    })?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Runs `base` over `text`, which was read from `dataset`. `progress` gets the numbers of layers done and of all
/// layers, over all chunks.
///
/// # Errors
/// [`crate::Error::Mismatch`] for a text shorter than a chunk, and for a tokenizer of another model;
/// [`crate::Error::NotFinite`] naming the weight; errors of reading weights and of the computation.
pub fn measure(
    base: &LanguageModel,
    text: &str,
    dataset: &Path,
    settings: &Settings,
    progress: &dyn Fn(u64, u64),
) -> Result<Measurement> {
    let config = base.decoder.config();
    let chunks = chunks(base, text, dataset, settings)?;
    let mut sums = SquareSums {
        path: base.decoder.weights().path(),
        layers: vec![Default::default(); config.num_hidden_layers],
        output: Vec::new(),
        done: 0,
        total: (chunks.len() * config.num_hidden_layers) as u64,
        progress,
    };
    for group in chunks.chunks(group_len(config, settings.chunk_size)) {
        let batches: Vec<Batch> = group.iter().map(|ids| batch(ids)).collect();
        for hidden in base.decoder.hidden_by_layer(&batches, &mut sums)? {
            if settings.process_output && !config.tie_word_embeddings {
                add_squares(&mut sums.output, &hidden)?;
                sums.check(OUTPUT, &sums.output)?;
            }
        }
    }
    let count = chunks.len() as u64 * u64::from(settings.chunk_size);
    Ok(measurement(sums.entries(count), &chunks, dataset, settings))
}

/// The result of [`measure`] for `text`, with zeros as sums, without reading any weights.
///
/// # Errors
/// As [`measure`] before the computation.
pub fn planned(base: &LanguageModel, text: &str, dataset: &Path, settings: &Settings) -> Result<Measurement> {
    let config = base.decoder.config();
    let chunks = chunks(base, text, dataset, settings)?;
    let count = chunks.len() as u64 * u64::from(settings.chunk_size);
    let zeros = |columns: usize| Sums { squares: vec![0.0; columns], counts: vec![count] };
    let layers =
        (0..config.num_hidden_layers).flat_map(|layer| Module::ALL.map(|module| LinearLayer { layer, module }));
    let mut entries: BTreeMap<String, Sums> =
        layers.map(|linear| (linear.gguf_name(), zeros(linear.module.shape(config).1))).collect();
    if settings.process_output && !config.tie_word_embeddings {
        entries.insert(OUTPUT.to_owned(), zeros(config.hidden_size));
    }
    Ok(measurement(entries, &chunks, dataset, settings))
}

/// Makes a measurement from `entries` and `chunks` of the text in `dataset`.
fn measurement(
    entries: BTreeMap<String, Sums>,
    chunks: &[Vec<u32>],
    dataset: &Path,
    settings: &Settings,
) -> Measurement {
    Measurement {
        entries,
        datasets: vec![dataset.as_os_str().as_encoded_bytes().to_vec()],
        chunk_count: chunks.len() as u32,
        chunk_size: settings.chunk_size,
    }
}

/// Splits the text's tokens into whole chunks.
fn chunks(base: &LanguageModel, text: &str, dataset: &Path, settings: &Settings) -> Result<Vec<Vec<u32>>> {
    let bos = base.encoder.first_special()?;
    // BOS also comes before the whole text, which moves the chunks by one token.
    let ids: Vec<u32> = bos.into_iter().chain(base.encoder.encode(text, false)?).collect();
    let size = settings.chunk_size as usize;
    if size == 0 || ids.len() < size {
        return Err(Finding::new(dataset, "text")
            .expected(format_args!("at least {} tokens, one chunk", size.max(1)))
            .found(ids.len())
            .hint("give a longer text, or smaller chunks with `chunk_size`")
            .mismatch());
    }
    let most = settings.chunks.map_or(usize::MAX, |chunks| chunks.max(1) as usize).min(i32::MAX as usize);
    let mut chunks: Vec<Vec<u32>> = ids.chunks_exact(size).take(most).map(<[u32]>::to_vec).collect();
    if let Some(bos) = bos {
        chunks.iter_mut().for_each(|chunk| chunk[0] = bos);
    }
    Ok(chunks)
}

/// A batch of one chunk.
fn batch(ids: &[u32]) -> Batch {
    Batch::new(&[Sequence { routed: ids.len(), ids: ids.to_vec(), instruction: Vec::new() }])
}

/// The number of chunks that go through the layers together.
fn group_len(config: &ModelConfig, chunk_size: u32) -> usize {
    let size = chunk_size as usize;
    let numbers = config.hidden_size.saturating_add(size).saturating_mul(size);
    (MAX_STATE_BYTES / numbers.saturating_mul(4).max(1)).max(1)
}

/// A hook that sums squares by layer and linear layer, and adds nothing to the outputs.
struct SquareSums<'a> {
    /// The model's path, for messages.
    path: &'a Path,
    layers: Vec<[Vec<f64>; Module::ALL.len()]>,
    output: Vec<f64>,
    done: u64,
    total: u64,
    progress: &'a dyn Fn(u64, u64),
}

impl SquareSums<'_> {
    /// The sums as entries, over `count` tokens.
    fn entries(self, count: u64) -> BTreeMap<String, Sums> {
        let layers = self.layers.into_iter().enumerate().flat_map(|(layer, modules)| {
            let names = Module::ALL.map(|module| LinearLayer { layer, module }.gguf_name());
            names.into_iter().zip(modules)
        });
        let entries = layers.chain([(OUTPUT.to_owned(), self.output)]).filter(|(_, squares)| !squares.is_empty());
        let rounded = |squares: Vec<f64>| squares.into_iter().map(|sum| sum as f32).collect();
        entries.map(|(name, squares)| (name, Sums { squares: rounded(squares), counts: vec![count] })).collect()
    }

    /// Refuses sums that aren't finite, at the first place where they occur.
    fn check(&self, name: &str, squares: &[f64]) -> Result<()> {
        let Some(place) = squares.iter().position(|sum| !(*sum as f32).is_finite()) else { return Ok(()) };
        let finding = Finding::new(self.path, format!("activations entering {name:?}")).expected("finite numbers");
        let found = format_args!("a sum of squares of {} in column {place}", squares[place] as f32).to_string();
        Err(finding.found(found).not_finite())
    }
}

impl Hook for SquareSums<'_> {
    fn delta(&mut self, site: LinearLayer, x: &Tensor) -> Result<Option<Tensor>> {
        add_squares(&mut self.layers[site.layer][site.module as usize], x)?;
        self.check(&site.gguf_name(), &self.layers[site.layer][site.module as usize])?;
        if site.module == Module::Down {
            self.done += 1;
            (self.progress)(self.done, self.total);
        }
        Ok(None)
    }
}

/// Adds the squares of `x`, `[.., d]`, to the sums of columns.
fn add_squares(sums: &mut Vec<f64>, x: &Tensor) -> Result<()> {
    let columns = x.dims().last().copied().unwrap_or(1);
    sums.resize(columns, 0.0);
    for row in x.flatten_all()?.to_vec1::<f32>()?.chunks_exact(columns.max(1)) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += f64::from(*value) * f64::from(*value);
        }
    }
    Ok(())
}
