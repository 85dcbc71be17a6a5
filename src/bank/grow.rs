//! Growth: an atom for one more instruction, and everything else as it was.
//!
//! The routing of the new atom is set in closed form: its key is zero, and its descriptor and bias give it all of the
//! prior for the new instruction and nothing for the others. docs/formats/bank.md has the mathematics.

use std::path::Path;

use super::config::{BankConfig, PRIOR_BIAS, check_rank};
use super::stage::{BankStage, MAX_GROWTHS, padded};
use super::{AtomBank, LoadedBank};
use crate::adapter::{HostTensor, Tensors};
use crate::arch::ModelConfig;
use crate::error::{Finding, Result};
use crate::linalg::{Matrix, Random, from_rows, svd};
use crate::model::{ModelWeights, Sequence, TextEncoder};

mod check;

pub use check::{GrowthCheck, check_growth};

/// The negative of a new atom's score in the prior for the other instructions, and by how much its score for its own
/// leads over those of the other atoms. exp(-400) is 0 in f32, and leaves room for what the state adds to logits.
const SCORE: f64 = 400.0;

/// The smallest part of an embedding outside the span of the others, relative to its length, that a descriptor is made
/// of. For a smaller one, the rounding of f32 would show in the others' scores.
const LEAST_PART: f64 = 1e-2;

/// What a bank grows by.
#[derive(Debug, Clone, PartialEq)]
pub struct Addition {
    /// The new instruction.
    pub instruction: String,
    /// Its embedding, `[d_e]`, centred as the bank's are.
    pub embedding: Vec<f32>,
    /// The instructions that the bank has, which must stay as they are.
    pub others: Vec<String>,
    /// Their embeddings, `[others, d_e]`.
    pub other_embeddings: Vec<f32>,
    /// The columns of rank that are added to every factor; may be 0.
    pub rank: usize,
    /// The seed of the new rows of A.
    pub seed: u64,
}

impl Addition {
    /// Adds `instruction` to `bank`, which is one for the base with these weights and tokenizer, with its embedding and
    /// those of the `others`. `size` is the rank that is added, and the seed.
    ///
    /// # Errors
    /// As [`LoadedBank::embed`], and errors of tokenizing.
    pub fn new(
        bank: &LoadedBank,
        weights: &ModelWeights,
        tokenizer: &TextEncoder,
        instruction: String,
        others: Vec<String>,
        (rank, seed): (usize, u64),
    ) -> Result<Self> {
        let embed = |texts: &[String]| -> Result<Vec<f32>> {
            let mut all = Vec::new();
            for text in texts {
                let sequence = Sequence { instruction: bank.encoder().tokens(tokenizer, text)?, ..Sequence::default() };
                all.extend(bank.embed(weights, &[sequence])?.flatten_all()?.to_vec1::<f32>()?);
            }
            Ok(all)
        };
        let (embedding, other_embeddings) = (embed(std::slice::from_ref(&instruction))?, embed(&others)?);
        Ok(Self { instruction, embedding, others, other_embeddings, rank, seed })
    }
}

/// The new atom's routing.
struct NewRouting {
    /// u, `[d_p]`, with one entry more where `row` is there.
    descriptor: Vec<f64>,
    /// A further row of P, `[d_e]`, if the new instruction can't be told from the others without.
    row: Option<Vec<f64>>,
    /// The negative of its bias.
    score: f64,
}

impl AtomBank {
    /// The bank with one more atom, for the instruction of `addition`. The new atom changes nothing yet; what it does is
    /// trained. Errors name the bank's path.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for an instruction whose embedding lies among those of the others, a bank without a
    /// prior, and a rank that is too large for `base`.
    pub fn grown(&self, addition: &Addition, base: &ModelConfig) -> Result<Self> {
        let old = &self.config;
        if old.growth.len() == MAX_GROWTHS {
            let finding = Finding::new(&self.path, "growth").expected(format_args!("fewer than {MAX_GROWTHS} before"));
            return Err(finding.found(old.growth.len()).mismatch());
        }
        let r = old.r.saturating_add(addition.rank);
        check_rank(&self.path, "", r, base)?;
        let routing = self.new_routing(addition)?;
        let descriptor_dim = old.descriptor_dim + usize::from(routing.row.is_some());
        let rank_factor = r as f64 / old.r as f64;
        let config = BankConfig {
            r,
            // The factor of updates stays.
            lora_alpha: old.lora_alpha * if old.use_rslora { rank_factor.sqrt() } else { rank_factor },
            num_atoms: old.num_atoms + 1,
            top_k: if old.top_k == old.num_atoms { old.top_k + 1 } else { old.top_k },
            descriptor_dim,
            // So does the divisor of the prior's scores.
            prior_temperature: old.prior_temperature * (old.descriptor_dim as f64 / descriptor_dim as f64).sqrt(),
            growth: old.growth.iter().copied().chain([BankStage::of(old)]).collect(),
            ..old.clone()
        };
        let tensors = self.grown_tensors(&config, &routing, addition.seed);
        let mut instructions = addition.others.clone();
        instructions.push(addition.instruction.clone());
        let bank = Self { path: self.path.clone(), config, tensors, instructions };
        bank.config.check(&self.path)?;
        bank.check_base(base)?;
        Ok(bank)
    }

    /// The old tensors, padded, with the new atom's values.
    fn grown_tensors(&self, config: &BankConfig, routing: &NewRouting, seed: u64) -> Tensors {
        let (old_r, r) = (self.config.r, config.r);
        let mut random = Random::new(seed);
        let mut tensors = self.tensors.clone();
        let none = HostTensor { shape: vec![self.config.num_atoms], values: vec![0.0; self.config.num_atoms].into() };
        tensors.entry(PRIOR_BIAS.to_owned()).or_insert(none);
        let own: Vec<_> = config.global_tensors().into_iter().chain(config.optional_tensors()).collect();
        for (name, tensor) in &mut tensors {
            let shape: Vec<usize> = match (own.iter().find(|(own, _)| own == name), tensor.shape.as_slice()) {
                (Some((_, own)), found) => own.iter().zip(found).map(|(own, found)| own.unwrap_or(*found)).collect(),
                (None, [_, d_in]) if name.ends_with(".lora_A.weight") => vec![r, *d_in],
                (None, [d_out, _]) => vec![*d_out, r],
                (None, found) => found.to_vec(),
            };
            if shape != tensor.shape {
                *tensor = padded(tensor, &shape);
            }
            let mut values = tensor.values.to_vec();
            match name.as_str() {
                // The new directions are there from the start; the old ones join as the atom learns.
                "atom_bank.atoms" => {
                    let atom = values.len() - r * r;
                    (old_r..r).for_each(|i| values[atom + i * r + i] = 1.0);
                }
                "atom_bank.descriptors" => {
                    let start = values.len() - config.descriptor_dim;
                    values[start..].iter_mut().zip(&routing.descriptor).for_each(|(value, new)| *value = *new as f32);
                }
                "atom_bank.prior.proj.weight" => {
                    if let Some(row) = &routing.row {
                        let start = values.len() - row.len();
                        values[start..].iter_mut().zip(row).for_each(|(value, new)| *value = *new as f32);
                    }
                }
                PRIOR_BIAS => {
                    if let Some(last) = values.last_mut() {
                        *last = -routing.score as f32;
                    }
                }
                name if name.ends_with(".lora_A.weight") => {
                    let bound = 1.0 / (shape[1] as f32).sqrt();
                    let new = &mut values[old_r * shape[1]..];
                    new.iter_mut().for_each(|value| *value = bound * (2.0 * random.uniform() - 1.0));
                }
                _ => continue,
            }
            tensor.values = values.into();
        }
        tensors
    }

    /// The new atom's descriptor and bias: for every other instruction its score is `-score`, for its own `score`.
    fn new_routing(&self, addition: &Addition) -> Result<NewRouting> {
        let config = &self.config;
        let finding = |subject: &str| Finding::new(&self.path, subject.to_owned());
        let strength = config.prior_strength / config.temperature;
        let score = SCORE / strength.min(1.0);
        if !(strength > 0.0 && score < 1e30) {
            return Err(finding("prior_strength")
                .expected("a prior that can choose an atom: a positive number that isn't tiny")
                .found(config.prior_strength)
                .mismatch());
        }
        let d_e = config.instruction_dim;
        let projection = &self.tensors["atom_bank.prior.proj.weight"];
        let projection = from_rows(config.descriptor_dim, d_e, &projection.values);
        let new = from_rows(d_e, 1, &addition.embedding);
        let divisor = (config.descriptor_dim as f64).sqrt() * config.prior_temperature;
        // What the descriptor has to give for the new instruction: the bias back, and a lead over every other atom. Atoms of
        // earlier growths may have large scores there.
        let given = score + self.scores(&(&projection * &new), divisor).fold(0.0, f64::max) + score;
        let others = from_rows(addition.others.len(), d_e, &addition.other_embeddings).transpose();

        let (part, length) = outside(&(&projection * &new), &(&projection * &others));
        if length >= LEAST_PART {
            let factor = given * divisor / part.norm_squared();
            let descriptor = part.iter().map(|value| value * factor).collect();
            return Ok(NewRouting { descriptor, row: None, score });
        }
        let (part, length) = outside(&new, &others);
        if length < LEAST_PART {
            return Err(finding("the new instruction")
                .expected("an embedding that isn't a mixture of those of the bank's instructions")
                .found(format_args!("{:?}", addition.instruction))
                .hint("word it with other words: base-embeddings don't see their order")
                .mismatch());
        }
        let row: Vec<f64> = part.iter().map(|value| value / part.norm()).collect();
        let mut descriptor = vec![0.0; config.descriptor_dim];
        descriptor.push(given * divisor / part.norm());
        Ok(NewRouting { descriptor, row: Some(row), score })
    }

    /// The prior's scores of the atoms for a projected instruction, `P e`, `[d_p, 1]`.
    fn scores(&self, projected: &Matrix, divisor: f64) -> impl Iterator<Item = f64> {
        let descriptors = &self.tensors["atom_bank.descriptors"].values;
        let bias = self.tensors.get(PRIOR_BIAS);
        descriptors.chunks_exact(self.config.descriptor_dim).enumerate().map(move |(atom, descriptor)| {
            let dot: f64 = descriptor.iter().zip(projected.iter()).map(|(u, p)| f64::from(*u) * p).sum();
            dot / divisor + bias.map_or(0.0, |bias| f64::from(bias.values[atom]))
        })
    }
}

/// The part of the column `new` that is orthogonal to all columns of `others`, and its length relative to that of `new`.
fn outside(new: &Matrix, others: &Matrix) -> (Matrix, f64) {
    let basis = svd(others.clone());
    let most = basis.s.first().copied().unwrap_or(0.0);
    let rank = basis.s.iter().filter(|s| **s > 1e-6 * most).count();
    let basis = basis.u.columns(0, rank);
    // Twice, so that rounding leaves nothing.
    let once = new - basis * (basis.transpose() * new);
    let part = &once - basis * (basis.transpose() * &once);
    let length = part.norm() / new.norm().max(f64::MIN_POSITIVE);
    (part, length)
}

/// Reads instructions from a file, one a line; empty lines are skipped, and each counts once.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::Mismatch`] for a file without any.
pub fn read_instructions(path: &Path) -> Result<Vec<String>> {
    let mut instructions: Vec<String> = Vec::new();
    for line in super::lines_of(path)? {
        if !instructions.contains(&line) {
            instructions.push(line);
        }
    }
    Ok(instructions)
}

#[cfg(test)]
mod tests;
