//! Updates of single modules. The names of its tensors show the kind of an update.
//!
//! Reference: KohakuBlueleaf/LyCORIS 4.1 `lycoris/modules/`, the weights that `forward` computes, because adapters are
//! trained with those. `merge_to` differs for LoHa and LoKr: it applies the scale twice. The scale is alpha over the
//! rank, or 1 without an alpha. Saving multiplies the learned scalar into the factors, and the effect of `rs_lora` into
//! alpha.

mod kernel;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::peft::{
    ABSENT, Base, Change, Factors, LowRank, Named, ScaleColumns, ScaleRows, Weight, WeightLayout, hadamard, integers,
    kronecker, rescale,
};
use crate::arch::Naming;
use crate::error::{Finding, Result};
use crate::plan::{Expr, PlannedTensor, RowMap};
use crate::source::show_shape;

/// A module's tensors, by the part of their names after the module's.
pub(super) type ModuleTensors = BTreeMap<String, PlannedTensor>;

/// The kind of a module's update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UpdateKind {
    Lora,
    Loha,
    Lokr,
    Glora,
    Ia3,
    Full,
    Norm,
}

/// Names of tensors that only one kind of update has.
const KINDS: [(UpdateKind, &[&str]); 7] = [
    (UpdateKind::Lora, &["lora_down.weight", "lora_up.weight"]),
    (UpdateKind::Loha, &["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]),
    (UpdateKind::Lokr, &["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"]),
    (UpdateKind::Glora, &["a1.weight", "a2.weight", "b1.weight", "b2.weight"]),
    (UpdateKind::Ia3, &["on_input", "weight"]),
    (UpdateKind::Norm, &["w_norm", "b_norm"]),
    (UpdateKind::Full, &["diff", "diff_b"]),
];

/// Names of tensors of updates that this version can't merge, and the reasons.
const REFUSED: [(&str, &str); 8] = [
    ("lokr_t1", CORE),
    ("bm.weight", CORE),
    ("oft_blocks", ROTATION),
    ("oft_diag", ROTATION),
    ("lambda_layer", TIMESTEPS),
    ("q_layer.weight", TIMESTEPS),
    ("p_layer.weight", TIMESTEPS),
    ("scalar", "a factor that LyCORIS has in the other tensors when it saves them"),
];

/// Cores of kernels.
const CORES: [&str; 4] = ["lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2"];
const CORE: &str = "part of a Tucker decomposition, which this version has no rule for";
const TUCKER: &str = "part of a Tucker decomposition, which linear layers don't have";
const ROTATION: &str = "a rotation of outputs (OFT, BOFT), which this version has no rule for";
const TIMESTEPS: &str = "part of a T-LoRA, which changes with the time step and starts at what is not in the file";

/// The name of the kind of update to which the tensor `part` belongs; `None` if no kind has it.
pub(crate) fn method_of(part: &str) -> Option<&'static str> {
    let (kind, _) = KINDS.iter().find(|(_, parts)| parts.contains(&part))?;
    Some(match kind {
        UpdateKind::Lora => "LoRA",
        UpdateKind::Loha => "LoHa",
        UpdateKind::Lokr => "LoKr",
        UpdateKind::Glora => "GLoRA",
        UpdateKind::Ia3 => "(IA)3",
        UpdateKind::Full => "whole differences",
        UpdateKind::Norm => "tuned norms",
    })
}

/// The update of one module.
pub(super) struct Update {
    file: PathBuf,
    module: String,
    parts: ModuleTensors,
}

/// Outputs and inputs of the module's weight, and whether the base stores it transposed.
#[derive(Clone, Copy)]
struct Sizes {
    d_out: usize,
    d_in: usize,
    transposed: bool,
}

impl Sizes {
    /// Turns a delta `[d_out, d_in]` into the base's layout, or back.
    fn turned(self, of: Expr) -> Expr {
        if self.transposed { Expr::Transpose(Box::new(of)) } else { of }
    }

    /// Whether a vector over outputs (or over inputs, if not `outputs`) runs along the columns of the base's weight.
    fn by_column(self, outputs: bool) -> bool {
        outputs == self.transposed
    }
}

impl Update {
    /// The update of `module` with the tensors `parts`, from the file at `file`.
    pub(super) fn new(file: &Path, module: String, parts: ModuleTensors) -> Self {
        Self { file: file.to_owned(), module, parts }
    }

    /// The changes for the base's module at `path`.
    pub(super) fn changes(
        mut self,
        path: &str,
        base: &Base,
        named: &HashMap<String, &PlannedTensor>,
    ) -> Result<Vec<Named>> {
        if let Some((part, why)) = REFUSED.iter().find(|(part, _)| self.parts.contains_key(*part)) {
            let finding =
                self.finding(part).expected("a part of a fixed update of a linear layer, a convolution or a norm");
            return Err(finding.found(why).hint(OTHER_PROGRAM).unsupported());
        }
        let has = |parts: &&[&str]| parts.iter().any(|part| self.parts.contains_key(*part));
        let name = format!("{path}.weight");
        let (Some((kind, _)), Some(weight)) = (KINDS.iter().find(|(_, parts)| has(parts)), named.get(&name)) else {
            return Err(self.unknown());
        };
        let mut changes = Vec::new();
        if *kind != UpdateKind::Full || self.parts.contains_key("diff") {
            let of_weight = self.weight(*kind, &name, weight, base)?;
            changes.extend(of_weight.into_iter().map(|change| (weight.name.clone(), change)));
        }
        let part = if *kind == UpdateKind::Norm { "b_norm" } else { "diff_b" };
        if let Some(tensor) = self.parts.remove(part) {
            let Some(bias) = named.get(&format!("{path}.bias")).filter(|bias| bias.shape == tensor.shape) else {
                let shape = show_shape(&tensor.shape);
                let finding = self.finding(part).expected(format_args!("a bias of {shape} in the base")).found("none");
                return Err(finding.hint(OTHER_BASE).mismatch());
            };
            changes.push((bias.name.clone(), Change::Add(tensor.expr)));
        }
        if self.parts.is_empty() { Ok(changes) } else { Err(self.unknown()) }
    }

    fn unknown(&self) -> crate::Error {
        let part = self.parts.keys().next().map(String::as_str).unwrap_or_default();
        let of_kernel = CORES.contains(&part).then_some(TUCKER);
        self.finding(part)
            .expected(
                "a part of a LoRA, LoHa, LoKr, GLoRA, (IA)3, full or norm update that the others of its module ask for",
            )
            .found(of_kernel.unwrap_or("another"))
            .hint(OTHER_PROGRAM)
            .unsupported()
    }

    /// The changes of the weight called `name`, in the order of application.
    fn weight(&mut self, kind: UpdateKind, name: &str, weight: &PlannedTensor, base: &Base) -> Result<Vec<Change>> {
        match kind {
            UpdateKind::Full => return Ok(vec![Change::Add(self.shaped("diff", &weight.shape)?)]),
            UpdateKind::Norm => return Ok(vec![Change::Add(self.shaped("w_norm", &weight.shape)?)]),
            _ => {}
        }
        if let Some(kernel) = Weight::of_kernel(weight)
            && let Some(changes) = self.of_kernel(kind, &kernel)?
        {
            return Ok(changes);
        }
        let Some(&[rows, cols]) = Some(weight.shape.as_slice()).filter(|shape| !shape.contains(&0)) else {
            let finding = self.finding(self.parts.keys().next().map(String::as_str).unwrap_or_default());
            let finding = finding.expected("a module of the base with a matrix for its weight");
            return Err(finding.found(show_shape(&weight.shape)).unsupported());
        };
        let transposed = Naming::of(base.config()).keeps_transposed(name).unwrap_or(false);
        let (d_out, d_in) = if transposed { (cols, rows) } else { (rows, cols) };
        let sizes = Sizes { d_out, d_in, transposed };
        let change = match kind {
            UpdateKind::Lora => self.low_rank(sizes)?,
            UpdateKind::Loha => Change::Add(sizes.turned(self.hadamard(sizes)?)),
            UpdateKind::Lokr => Change::Add(sizes.turned(self.kronecker(sizes)?)),
            UpdateKind::Glora => return Ok(vec![Change::Add(sizes.turned(self.both_sides(sizes, weight)?))]),
            _ => return Ok(vec![self.factors(sizes)?]),
        };
        let magnitudes = self.magnitudes(sizes, weight, &change)?;
        Ok([change].into_iter().chain(magnitudes).collect())
    }

    fn low_rank(&mut self, sizes: Sizes) -> Result<Change> {
        let rank = self.dimension("lora_down.weight", 0)?;
        let a = self.shaped("lora_down.weight", &[rank, sizes.d_in])?;
        let b = self.shaped("lora_up.weight", &[sizes.d_out, rank])?;
        let scale = self.scale(rank)?;
        Ok(Change::LowRank(LowRank {
            scale,
            alpha: None,
            a,
            b,
            layout: WeightLayout::of_linear(sizes.transposed),
            rounded: None,
        }))
    }

    /// The update of a LoHa.
    fn hadamard(&mut self, Sizes { d_out, d_in, .. }: Sizes) -> Result<Expr> {
        let rank = self.dimension("hada_w1_b", 0)?;
        let first = Expr::product(self.shaped("hada_w1_a", &[d_out, rank])?, self.shaped("hada_w1_b", &[rank, d_in])?);
        let second = Expr::product(self.shaped("hada_w2_a", &[d_out, rank])?, self.shaped("hada_w2_b", &[rank, d_in])?);
        Ok(hadamard(first, second, self.scale(rank)?))
    }

    /// The update of a LoKr.
    fn kronecker(&mut self, Sizes { d_out, d_in, .. }: Sizes) -> Result<Expr> {
        let (left, left_rank) = self.factor("lokr_w1")?;
        let (right, right_rank) = self.factor("lokr_w2")?;
        let scale = self.scale_of_factors(left_rank, right_rank)?;
        self.check_factors(&left, left_rank, &right, &[d_out, d_in])?;
        Ok(kronecker(left, right, scale))
    }

    /// The scale of a LoKr of two factors with these ranks, where they are products.
    fn scale_of_factors(&mut self, left: Option<usize>, right: Option<usize>) -> Result<f64> {
        match (left, right) {
            (Some(rank), Some(other)) if rank != other => {
                let finding = self.finding("lokr_w2_b").expected(format_args!("rank {rank}, as lokr_w1 has"));
                Err(finding.found(format_args!("rank {other}")).mismatch())
            }
            (Some(rank), _) | (None, Some(rank)) => self.scale(rank),
            (None, None) => self.scale_of_whole_factors(),
        }
    }

    /// Checks that the Kronecker product of two factors has this shape.
    fn check_factors(&self, left: &Expr, left_rank: Option<usize>, right: &Expr, shape: &[usize; 2]) -> Result<()> {
        let fits = left.shape().iter().zip(right.shape()).map(|(l, r)| l.checked_mul(r)).eq(shape.map(Some));
        if fits {
            return Ok(());
        }
        Err(self
            .finding(if left_rank.is_some() { "lokr_w1_a" } else { "lokr_w1" })
            .expected(format_args!("a factor of {}, as {} is", show_shape(shape), show_shape(&right.shape())))
            .found(show_shape(&left.shape()))
            .hint(OTHER_BASE)
            .mismatch())
    }

    /// A factor of a LoKr, and its rank if it is a product of two others.
    fn factor(&mut self, name: &str) -> Result<(Expr, Option<usize>)> {
        if self.parts.contains_key(name) {
            let shape = [self.dimension(name, 0)?, self.dimension(name, 1)?];
            return Ok((self.shaped(name, &shape)?, None));
        }
        let (a, b) = (format!("{name}_a"), format!("{name}_b"));
        let (rows, rank, cols) = (self.dimension(&a, 0)?, self.dimension(&b, 0)?, self.dimension(&b, 1)?);
        Ok((Expr::product(self.shaped(&a, &[rows, rank])?, self.shaped(&b, &[rank, cols])?), Some(rank)))
    }

    /// The update of a GLoRA, `s (B1 B2 + W A1 A2)`.
    fn both_sides(&mut self, sizes: Sizes, weight: &PlannedTensor) -> Result<Expr> {
        let Sizes { d_out, d_in, .. } = sizes;
        let (inner, outer) = (self.dimension("a2.weight", 0)?, self.dimension("b2.weight", 0)?);
        let a1 = self.shaped("a1.weight", &[d_in, inner])?;
        let a2 = self.shaped("a2.weight", &[inner, d_in])?;
        let b1 = self.shaped("b1.weight", &[d_out, outer])?;
        let b2 = self.shaped("b2.weight", &[outer, d_in])?;
        let of_weight = Expr::product(Expr::product(sizes.turned(weight.expr.clone()), a1), a2);
        let sum = Expr::Add { of: Box::new(Expr::product(b1, b2)), delta: Box::new(of_weight) };
        Ok(Expr::Scale { of: Box::new(sum), factor: self.scale(inner)? })
    }

    /// Whether an (IA)3 multiplies inputs.
    fn on_input(&mut self) -> Result<bool> {
        let on_input = self.need("on_input")?;
        let inputs = match on_input.elems() {
            1 => integers(&on_input).map_or_else(|| on_input.read(), |v| Ok(v.iter().map(|v| *v as f32).collect()))?,
            _ => Vec::new(),
        };
        match *inputs {
            [0.0] => Ok(false),
            [1.0] => Ok(true),
            _ => Err(self.finding("on_input").expected("0 or 1").found("another").format()),
        }
    }

    /// The factors of an (IA)3, which are stored minus 1.
    fn factors(&mut self, sizes: Sizes) -> Result<Change> {
        let inputs = self.on_input()?;
        let tensor = self.need("weight")?;
        let expected = [if inputs { sizes.d_in } else { sizes.d_out }];
        if tensor.shape != expected {
            return Err(self.misshapen("weight", &expected, &tensor.shape));
        }
        let factors: Factors = tensor.read()?.iter().map(|value| value + 1.0).collect();
        let map: Arc<dyn RowMap> = match sizes.by_column(!inputs) {
            true => Arc::new(ScaleColumns(factors)),
            false => Arc::new(ScaleRows(factors)),
        };
        Ok(Change::Map { others: Vec::new(), map, transposed: false })
    }

    /// DoRA's magnitudes, applied after `change`: one per output, or one per input as in the first versions of LyCORIS.
    fn magnitudes(&mut self, sizes: Sizes, weight: &PlannedTensor, change: &Change) -> Result<Option<Change>> {
        let Some(tensor) = self.parts.remove("dora_scale") else { return Ok(None) };
        let outputs = match *tensor.shape {
            [len, 1] if len == sizes.d_out => true,
            [1, len] if len == sizes.d_in => false,
            _ => {
                return Err(self
                    .finding("dora_scale")
                    .expected(format_args!("[{}, 1] or [1, {}] by the base model", sizes.d_out, sizes.d_in))
                    .found(show_shape(&tensor.shape))
                    .hint(OTHER_BASE)
                    .mismatch());
            }
        };
        rescale(weight, change, &tensor.read()?.into(), sizes.by_column(outputs), f32::EPSILON).map(Some)
    }

    /// Alpha over the rank.
    fn scale(&mut self, rank: usize) -> Result<f64> {
        Ok(match self.alpha()? {
            // kohya-ss and LyCORIS replace a missing alpha by the rank.
            None | Some(0.0) => 1.0,
            Some(alpha) => f64::from(alpha) / rank as f64,
        })
    }

    /// The scale of a LoKr of two whole factors. They have no rank, and the file's alpha equals the rank that they
    /// would have had: a whole number, unless `rs_lora` was on.
    fn scale_of_whole_factors(&mut self) -> Result<f64> {
        match self.alpha()? {
            Some(alpha) if alpha.fract() != 0.0 => Err(self
                .finding("alpha")
                .expected("a whole number, the rank, for a LoKr of two whole factors")
                .found(format_args!("{alpha}: it was trained with rs_lora, under a scale that its file doesn't have"))
                .hint(OTHER_PROGRAM)
                .unsupported()),
            _ => Ok(1.0),
        }
    }

    fn alpha(&mut self) -> Result<Option<f32>> {
        let Some(tensor) = self.parts.remove("alpha") else { return Ok(None) };
        if tensor.elems() != 1 {
            return Err(self.finding("alpha").expected("one number").found(show_shape(&tensor.shape)).format());
        }
        match integers(&tensor) {
            Some(whole) => Ok(whole.first().map(|alpha| *alpha as f32)),
            None => Ok(tensor.read()?.first().copied()),
        }
    }

    fn finding(&self, part: &str) -> Finding {
        Finding::new(&self.file, format!("tensor {:?}", format!("{}.{part}", self.module)))
    }

    fn need(&mut self, part: &str) -> Result<PlannedTensor> {
        self.parts.remove(part).ok_or_else(|| self.finding(part).expected(ABSENT).found("none").format())
    }

    fn shaped(&mut self, part: &str, shape: &[usize]) -> Result<Expr> {
        let tensor = self.need(part)?;
        Change::Add(tensor.expr.clone()).check_numbers(|| self.finding(part))?;
        if tensor.shape == shape { Ok(tensor.expr) } else { Err(self.misshapen(part, shape, &tensor.shape)) }
    }

    fn misshapen(&self, part: &str, expected: &[usize], found: &[usize]) -> crate::Error {
        self.finding(part)
            .expected(format_args!("{} by the base model and the others of its module", show_shape(expected)))
            .found(show_shape(found))
            .hint(OTHER_BASE)
            .mismatch()
    }

    /// The number of rows (`which` = 0) or columns (1) of a part, which must be a matrix.
    fn dimension(&self, part: &str, which: usize) -> Result<usize> {
        match self.parts.get(part).map(|tensor| tensor.shape.as_slice()) {
            None => Err(self.finding(part).expected(ABSENT).found("none").format()),
            Some(shape) if shape.len() == 2 && shape[which] > 0 => Ok(shape[which]),
            Some(shape) => Err(self.finding(part).expected("a matrix").found(show_shape(shape)).unsupported()),
        }
    }
}

const OTHER_BASE: &str = "this adapter belongs to another base model";
const OTHER_PROGRAM: &str = "merge it with the program that made it";
