//! The mixtures behind the names of file types: which tensors get more bits than the base type, and which get fewer.
//!
//! Reference: llama.cpp `src/llama-quant.cpp` (`llama_tensor_get_type_impl`, `init_quantize_state_counters`).

use std::path::Path;

use super::facts::ModelFacts;
use super::file_type::FileType::{self, *};
use super::names::{Role, block_of, is_stack};
use super::tensor_type::divides;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::Metadata;
use crate::source::TensorInfo;

/// One pass over a model's tensors in file order. It counts tensors, because many rules depend on how deep in the model
/// a tensor is.
pub(super) struct Mixture<'a> {
    file: &'a Path,
    model: &'a ModelFacts,
    file_type: FileType,
    base: DType,
    importance: bool,
    tied: bool,
    values: Progress,
    downs: Progress,
    gates: Progress,
    ups: Progress,
}

/// The number of a tensor among those of the same role, and how many there are. Rules divide with rounding down.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    seen: usize,
    of: usize,
}

impl Progress {
    fn new(of: usize) -> Self {
        Self { seen: 0, of }
    }

    /// Returns the current position and moves to the next one.
    fn step(&mut self) -> Self {
        let now = *self;
        self.seen += 1;
        now
    }

    /// Whether it is in the first `1 / part` of the model.
    fn in_first(self, part: usize) -> bool {
        self.seen < self.of / part
    }

    /// Whether it is in the last eighth of the model.
    fn in_last_eighth(self) -> bool {
        self.seen >= 7 * self.of / 8
    }

    /// Whether it is in the first or last eighth of the model, or is every third tensor in between.
    fn more_bits(self) -> bool {
        self.in_first(8) || self.in_last_eighth() || (self.seen - self.of / 8) % 3 == 2
    }
}

/// Parts of names for which glm5-next uses at least 8 bits.
const GLM5_NEXT_Q8: [&str; 3] = ["attn_q_a", "attn_q_b", "nextn.eh_proj"];

impl<'a> Mixture<'a> {
    /// A mixture for the tensors with these names; `importance` says whether there is an importance matrix.
    pub fn new<'n>(
        metadata: &'a Metadata,
        model: &'a ModelFacts,
        (file_type, base): (FileType, DType),
        importance: bool,
        names: impl Iterator<Item = &'n str>,
    ) -> Self {
        let roles: Vec<Role> = names.map(Role::of).collect();
        let blocks = Progress::new(model.blocks);
        Self {
            file: metadata.file(),
            model,
            file_type,
            base,
            importance,
            tied: !roles.contains(&Role::Output),
            values: Progress::new(roles.iter().filter(|role| **role == Role::Value).count()),
            downs: blocks,
            gates: blocks,
            ups: blocks,
        }
    }

    /// Whether a tensor of this role computes the model's outputs. Without an output tensor, the embeddings do.
    pub fn is_output(&self, role: Role) -> bool {
        role == Role::Output || (self.tied && role == Role::Embedding)
    }

    /// The type for a tensor of this role, even if its rows don't divide into the type's blocks.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where a rule needs a fact that the model doesn't have.
    pub fn preferred_type(&mut self, name: &str, tensor: &TensorInfo, role: Role) -> Result<DType> {
        if self.is("glm5-next") && GLM5_NEXT_Q8.iter().any(|part| name.contains(part)) {
            return Ok(DType::Q8_0);
        }
        Ok(match role {
            _ if self.is_output(role) => self.output(tensor),
            _ if self.file_type == MXFP4_MOE => self.mxfp4(tensor, role),
            Role::Embedding => self.embedding(),
            Role::Value => self.value(name)?,
            Role::Key => self.key(),
            Role::Query => self.query(),
            Role::AttentionOutput => self.attention_output(),
            Role::Down => self.down(name)?,
            Role::Gate => {
                let place = self.gates.step();
                self.gate_or_up(name, place)?
            }
            Role::Up => {
                let place = self.ups.step();
                self.gate_or_up(name, place)?
            }
            Role::Output | Role::Other => self.base,
        })
    }

    fn output(&self, tensor: &TensorInfo) -> DType {
        match self.file_type {
            MXFP4_MOE => DType::Q8_0,
            _ if self.is("falcon") || !divides(tensor.row_len(), self.base) => DType::Q8_0,
            IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ2_M | IQ3_XXS => DType::Q5_K,
            Q8_0 => DType::Q8_0,
            _ => DType::Q6_K,
        }
    }

    /// The type in an MXFP4 mixture: MXFP4 for experts, Q8_0 for all others.
    fn mxfp4(&self, tensor: &TensorInfo, role: Role) -> DType {
        // In bailingmoe3, attention has stacks of matrices as well, which aren't experts.
        let expert = !self.is("bailingmoe3") || matches!(role, Role::Up | Role::Gate | Role::Down);
        if is_stack(&tensor.shape) && expert { DType::MXFP4 } else { DType::Q8_0 }
    }

    fn embedding(&self) -> DType {
        match self.file_type {
            IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS => DType::Q2_K,
            IQ2_S | IQ2_M | IQ3_XXS => DType::IQ3_S,
            TQ1_0 | TQ2_0 | Q2_0 => DType::Q4_K,
            _ => self.base,
        }
    }

    fn value(&mut self, name: &str) -> Result<DType> {
        let place = self.values.step();
        if self.below_3_bits() {
            let many = self.model.experts >= 4 || self.shares_values(name)?;
            return Ok(if many { DType::Q4_K } else { self.smallest_step_up() });
        }
        let dtype = match self.file_type {
            Q2_K | Q2_K_S | IQ3_XXS | IQ3_XS | IQ3_S if self.shares_values(name)? => DType::Q4_K,
            IQ4_NL | IQ4_XS if self.shares_values(name)? => DType::Q5_K,
            Q2_K => DType::Q3_K,
            IQ3_XXS if !self.importance => DType::IQ3_S,
            IQ3_M => DType::Q4_K,
            Q3_K_M if place.seen < 2 => DType::Q5_K,
            Q3_K_M => DType::Q4_K,
            Q3_K_L => DType::Q5_K,
            Q4_K_S if place.seen < 4 => DType::Q5_K,
            Q4_K_M | Q5_K_M if place.more_bits() => DType::Q6_K,
            _ => self.base,
        };
        Ok(match dtype {
            // The values of attention are only a small part of these models.
            _ if self.model.experts == 8 => DType::Q8_0,
            DType::Q3_K | DType::Q4_K if self.model.is_70b => DType::Q5_K,
            _ => dtype,
        })
    }

    fn key(&self) -> DType {
        match self.model.experts {
            8 if self.below_3_bits() => DType::Q4_K,
            8 => DType::Q8_0,
            _ => self.query(),
        }
    }

    fn query(&self) -> DType {
        match self.file_type {
            IQ3_XS => DType::IQ3_XXS,
            IQ3_XXS => DType::IQ2_S,
            _ => self.base,
        }
    }

    fn attention_output(&self) -> DType {
        let eight_experts = self.model.experts == 8;
        match self.file_type {
            _ if eight_experts && self.below_3_bits() => DType::Q5_K,
            IQ1_S | IQ1_M => DType::IQ2_XXS,
            IQ2_S | IQ2_M => DType::IQ3_S,
            Q3_K_L if self.is("falcon") => DType::Q4_K,
            _ if self.is("falcon") => self.base,
            Q2_K | Q3_K_S | Q3_K_M | Q4_K_S | Q4_K_M if eight_experts => DType::Q5_K,
            IQ3_XXS | IQ3_XS | IQ3_S | IQ3_M | IQ4_NL | IQ4_XS if eight_experts => DType::Q5_K,
            _ if eight_experts => self.base,
            Q2_K => DType::Q3_K,
            IQ3_XXS => DType::IQ3_S,
            Q3_K_M | IQ3_M => DType::Q4_K,
            Q3_K_L => DType::Q5_K,
            _ => self.base,
        }
    }

    fn down(&mut self, name: &str) -> Result<DType> {
        let place = self.downs.step();
        if self.below_3_bits() {
            // By count, even in models with experts.
            return Ok(if place.in_first(8) { self.smallest_step_up() } else { self.base });
        }
        let place = self.by_block(name, place)?;
        let falcon = self.is("falcon");
        Ok(match self.file_type {
            Q2_K => DType::Q3_K,
            Q2_K_S if place.in_first(8) => DType::Q4_K,
            IQ3_XXS if !self.importance && place.in_first(8) => DType::Q4_K,
            IQ3_XXS if !self.importance => DType::Q3_K,
            IQ3_M if place.in_first(8) || (self.model.experts == 8 && place.more_bits()) => DType::Q4_K,
            Q3_K_M if place.in_first(16) => DType::Q5_K,
            Q3_K_M if !falcon || place.more_bits() => DType::Q4_K,
            Q3_K_L if falcon => DType::Q4_K,
            Q3_K_L => DType::Q5_K,
            Q4_K_S if !falcon && place.in_first(8) => DType::Q5_K,
            Q4_K_M if falcon && place.in_first(16) => DType::Q6_K,
            Q4_K_M if falcon && place.more_bits() => DType::Q5_K,
            Q4_K_M if falcon => self.base,
            Q4_K_M | Q5_K_M if place.more_bits() => DType::Q6_K,
            IQ4_NL | IQ4_XS if place.in_first(8) && !self.importance => DType::Q5_K,
            // In the first of these tensors, Q4_0 and Q5_0 can fail with importance, and Q4_1 and Q5_1 without it.
            Q4_0 if place.in_first(8) && self.importance => DType::Q4_1,
            Q5_0 if place.in_first(8) && self.importance => DType::Q5_1,
            _ => self.base,
        })
    }

    fn gate_or_up(&self, name: &str, place: Progress) -> Result<DType> {
        if self.below_3_bits() {
            return Ok(self.base);
        }
        let place = self.by_block(name, place)?;
        let middle = !place.in_first(8) && !place.in_last_eighth();
        Ok(if self.file_type == IQ3_XS && middle { DType::IQ3_XXS } else { self.base })
    }

    fn is(&self, architecture: &str) -> bool {
        self.model.architecture == architecture
    }

    /// Whether the file type is one of those with separate mixture rules.
    fn below_3_bits(&self) -> bool {
        matches!(self.file_type, IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ2_M)
    }

    /// The type that these give to slightly more sensitive tensors.
    fn smallest_step_up(&self) -> DType {
        if matches!(self.file_type, IQ2_S | IQ2_M) { DType::IQ3_S } else { DType::Q2_K }
    }

    /// Whether at least four query heads share a value head, so that the value tensors are small.
    fn shares_values(&self, name: &str) -> Result<bool> {
        self.model.heads_per_kv.map(|heads| heads >= 4).ok_or_else(|| {
            Finding::new(self.file, format!("tensor {name:?}"))
                .expected(format_args!("a model whose heads are known, as {} asks for them", self.file_type))
                .found(format_args!("one of architecture {:?}", self.model.architecture))
                .hint("choose a file type without a mixture, such as Q8_0")
                .mismatch()
        })
    }

    /// With experts, a block may have several such tensors or none, so the block's number replaces the count.
    fn by_block(&self, name: &str, place: Progress) -> Result<Progress> {
        if self.model.experts < 2 {
            return Ok(place);
        }
        match block_of(name) {
            Some(block) if block < place.of => Ok(Progress { seen: block, ..place }),
            _ => Err(Finding::new(self.file, format!("tensor {name:?}"))
                .expected(format_args!("a name that begins with blk.N., N below {}, in a model of experts", place.of))
                .found("another")
                .hint("`pure` has no rules for blocks")
                .mismatch()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bits_go_to_both_ends_and_to_every_third() {
        let more = |of| (0..of).filter(|&seen| Progress { seen, of }.more_bits()).collect::<Vec<_>>();
        assert_eq!(more(28), [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]);
        assert_eq!(more(2), [1], "rounded down, the first eighth of two is nothing");
        assert_eq!(more(1), [0]);
        assert!(Progress { seen: 5, of: 0 }.more_bits());
    }
}
