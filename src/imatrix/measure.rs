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
use crate::arch::{LinearLayer, ModelConfig};
use crate::error::{Finding, IoContext, Result};
use crate::model::{Batch, ExpertMatrix, Hook, LanguageModel, Sequence};

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
        experts: config.experts(),
        entries: BTreeMap::new(),
        done: 0,
        total: (chunks.len() * config.num_hidden_layers) as u64,
        progress,
    };
    for group in chunks.chunks(group_len(config, settings.chunk_size)) {
        let batches: Vec<Batch> = group.iter().map(|ids| batch(ids)).collect();
        for hidden in base.decoder.hidden_by_layer(&batches, &mut sums)? {
            if settings.process_output && !config.tie_word_embeddings {
                sums.add(OUTPUT, &hidden)?;
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
    let linears = config.linears().iter().filter(|linear| !linear.site.module.is_of_latent());
    let mut entries: BTreeMap<String, Sums> =
        linears.map(|linear| (linear.site.gguf_name(), zeros(linear.d_in))).collect();
    for (name, experts, columns) in config.expert_inputs()? {
        // How many tokens an expert gets is known afterwards.
        entries.insert(name, Sums { squares: vec![0.0; experts * columns], counts: vec![count; experts] });
    }
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
    Batch::new(&[Sequence { routed: ids.len(), ids: ids.to_vec(), ..Sequence::default() }])
}

/// The number of chunks that go through the layers together.
fn group_len(config: &ModelConfig, chunk_size: u32) -> usize {
    let size = chunk_size as usize;
    let numbers = config.hidden_size.saturating_add(size).saturating_mul(size);
    (MAX_STATE_BYTES / numbers.saturating_mul(4).max(1)).max(1)
}

/// Sums over the inputs of one weight, of several for a stack of experts.
#[derive(Default)]
struct Entry {
    squares: Vec<f64>,
    /// The tokens of each matrix; for linear layers outside experts, all tokens are counted at the end.
    counts: Vec<u64>,
}

/// A hook that sums squares by weight, and adds nothing to the outputs.
struct SquareSums<'a> {
    /// The model's path, for messages.
    path: &'a Path,
    /// The number of experts in a layer with experts.
    experts: usize,
    entries: BTreeMap<String, Entry>,
    done: u64,
    total: u64,
    progress: &'a dyn Fn(u64, u64),
}

impl SquareSums<'_> {
    /// The sums as entries, over `count` tokens.
    fn entries(self, count: u64) -> BTreeMap<String, Sums> {
        let rounded = |squares: Vec<f64>| squares.into_iter().map(|sum| sum as f32).collect();
        let sums = |entry: Entry| Sums {
            squares: rounded(entry.squares),
            counts: if entry.counts.is_empty() { vec![count] } else { entry.counts },
        };
        self.entries.into_iter().map(|(name, entry)| (name, sums(entry))).collect()
    }

    /// Adds the inputs `x` of a weight.
    fn add(&mut self, name: &str, x: &Tensor) -> Result<()> {
        let entry = self.entries.entry(name.to_owned()).or_default();
        add_squares(&mut entry.squares, x)?;
        check(self.path, name, &entry.squares)
    }
}

/// Refuses sums that aren't finite, at the first place where they occur.
fn check(path: &Path, name: &str, squares: &[f64]) -> Result<()> {
    let Some(place) = squares.iter().position(|sum| !(*sum as f32).is_finite()) else { return Ok(()) };
    let finding = Finding::new(path, format!("activations entering {name:?}")).expected("finite numbers");
    let found = format_args!("a sum of squares of {} in column {place}", squares[place] as f32).to_string();
    Err(finding.found(found).not_finite())
}

/// The names of the weights in layer `layer` that have the inputs of a matrix of experts.
fn expert_names(layer: usize, matrix: ExpertMatrix) -> Vec<String> {
    let names: &[&str] = match matrix {
        ExpertMatrix::Router => &["ffn_gate_inp"],
        ExpertMatrix::Inner => &["ffn_gate_exps", "ffn_up_exps"],
        ExpertMatrix::Down => &["ffn_down_exps"],
    };
    names.iter().map(|name| format!("blk.{layer}.{name}.weight")).collect()
}

impl Hook for SquareSums<'_> {
    fn delta(&mut self, site: LinearLayer, x: &Tensor) -> Result<Option<Tensor>> {
        // llama.cpp computes with two weights in place of this one.
        if !site.module.is_of_latent() {
            self.add(&site.gguf_name(), x)?;
        }
        Ok(None)
    }

    fn expert(&mut self, layer: usize, matrix: ExpertMatrix, expert: usize, x: &Tensor) -> Result<()> {
        if matrix == ExpertMatrix::Router {
            return self.add(&expert_names(layer, matrix)[0], x);
        }
        let (tokens, columns) = x.dims2()?;
        for name in expert_names(layer, matrix) {
            let entry = self.entries.entry(name.clone()).or_default();
            entry.squares.resize(self.experts * columns, 0.0);
            entry.counts.resize(self.experts, 0);
            entry.counts[expert] += tokens as u64;
            let squares = &mut entry.squares[expert * columns..(expert + 1) * columns];
            add_to(squares, x)?;
            check(self.path, &name, squares)?;
        }
        Ok(())
    }

    fn after_layer(&mut self, _layer: usize) -> Result<()> {
        self.done += 1;
        (self.progress)(self.done, self.total);
        Ok(())
    }
}

/// Adds the squares of `x`, `[.., d]`, to the sums of columns.
fn add_squares(sums: &mut Vec<f64>, x: &Tensor) -> Result<()> {
    sums.resize(x.dims().last().copied().unwrap_or(1), 0.0);
    add_to(sums, x)
}

/// As [`add_squares`], for as many sums as there are columns.
fn add_to(sums: &mut [f64], x: &Tensor) -> Result<()> {
    for row in x.flatten_all()?.to_vec1::<f32>()?.chunks_exact(sums.len().max(1)) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += f64::from(*value) * f64::from(*value);
        }
    }
    Ok(())
}
