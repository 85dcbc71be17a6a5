//! Kernels: one routine, compiled for several widths of vectors, and the choice between them.
//!
//! ggml's quantizers sum each run of a block in order, without fused multiply-add (which the compiler
//! never makes of a product and a sum by itself); runs are independent of each other. With one run in
//! each lane of a vector every lane keeps that order, so all kernels give the same bits, and "scalar" is
//! the same routine with one lane.

#[cfg(target_arch = "x86_64")]
use std::arch::is_x86_feature_detected;
use std::sync::OnceLock;

/// A width that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Width);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Scalar,
    Avx2,
}

/// A computation that can be compiled for any width.
pub(crate) trait Routine {
    /// Does the work, `L` runs at a time, as many as a vector has lanes; `PAIR` are those of two
    /// vectors, for searches that wait for their own results and leave time for another.
    /// `#[inline(always)]`, as everything it calls, so that it is compiled for the width it is called
    /// from.
    fn run<const L: usize, const PAIR: usize>(self);
}

/// The kernel of this process, once it is chosen.
static CHOSEN: OnceLock<Kernel> = OnceLock::new();

impl Kernel {
    /// Names of kernels, as `--kernel` takes them.
    pub const NAMES: [&str; 2] = ["scalar", "avx2"];

    /// One value at a time: the reference for the others.
    pub const SCALAR: Self = Self(Width::Scalar);

    /// The kernel in use: the widest, unless another was chosen before.
    pub fn in_use() -> Self {
        *CHOSEN.get_or_init(Self::best)
    }

    /// Chooses the kernel for the whole process, as its threads are chosen; false where one is in use
    /// already. All give the same bits.
    pub fn choose(self) -> bool {
        *CHOSEN.get_or_init(|| self) == self
    }

    /// The widest kernel that this processor has.
    pub fn best() -> Self {
        Self::named("avx2").unwrap_or(Self::SCALAR)
    }

    /// The kernel called `name`; `None` for an unknown name and where the processor lacks it.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "scalar" => Some(Self::SCALAR),
            #[cfg(target_arch = "x86_64")]
            "avx2" if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => Some(Self(Width::Avx2)),
            _ => None,
        }
    }

    /// Runs `routine` with this kernel's instructions and number of lanes.
    #[allow(unsafe_code)]
    pub(crate) fn run(self, routine: impl Routine) {
        match self.0 {
            Width::Scalar => routine.run::<1, 1>(),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `named`, the only way to this value, has seen that the processor has AVX2 and FMA.
            Width::Avx2 => unsafe { avx2(routine) },
            #[cfg(not(target_arch = "x86_64"))]
            Width::Avx2 => routine.run::<1, 1>(),
        }
    }

    /// As [`Kernel::run`], with AVX-512 where the processor has it and vectors are in use at all: for
    /// short routines that spend their time in plain arithmetic. Quantizers gain nothing by it, and
    /// would be in the program a third time.
    #[allow(unsafe_code)]
    pub(crate) fn run_wide(self, routine: impl Routine) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Width::Avx2 if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") => {
                // SAFETY: the processor has what the function is compiled for.
                unsafe { avx512(routine) }
            }
            _ => self.run(routine),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(routine: impl Routine) {
    routine.run::<8, 16>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
fn avx512(routine: impl Routine) {
    routine.run::<16, 32>();
}
