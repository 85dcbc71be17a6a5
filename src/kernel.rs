//! Kernels: one routine, compiled for several vector widths, and the choice between them.
//!
//! ggml's quantizers sum each run of a block in order, without fused multiply-adds (which the compiler never makes of a
//! separate product and sum). Runs are independent of each other. With one run in each lane of a vector, every lane
//! keeps that order, so all kernels give the same bits. "scalar" is the same routine with one lane.

#[cfg(target_arch = "x86_64")]
use std::arch::is_x86_feature_detected;
use std::sync::OnceLock;

/// A vector width that this processor supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Width);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Scalar,
    Avx2,
}

/// A computation that can be compiled for any vector width.
pub(crate) trait Routine {
    /// Does the work. A vector has `L` lanes, each for one run. `PAIR` is the number of lanes of two vectors, for
    /// searches whose steps depend on each other and so leave time for a second vector. Mark this and everything it
    /// calls as `#[inline(always)]`, so that it is compiled for the caller's vector width.
    fn run<const L: usize, const PAIR: usize>(self);
}

/// The kernel of this process, once it is chosen.
static CHOSEN: OnceLock<Kernel> = OnceLock::new();

impl Kernel {
    /// The names of kernels, as `--kernel` takes them.
    pub const NAMES: [&str; 2] = ["scalar", "avx2"];

    /// One value at a time: the reference for the others.
    pub const SCALAR: Self = Self(Width::Scalar);

    /// The kernel in use: the widest one, unless another was chosen before the first use.
    pub fn in_use() -> Self {
        *CHOSEN.get_or_init(Self::best)
    }

    /// Chooses the kernel for the whole process. Returns false if another one is in use already. All kernels give the
    /// same bits.
    pub fn choose(self) -> bool {
        *CHOSEN.get_or_init(|| self) == self
    }

    /// The widest kernel that this processor supports.
    pub fn best() -> Self {
        Self::named("avx2").unwrap_or(Self::SCALAR)
    }

    /// The kernel called `name`; `None` for an unknown name, or if the processor doesn't support it.
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
            // SAFETY: `named`, the only way to this value, has checked that the processor has AVX2 and FMA.
            Width::Avx2 => unsafe { avx2(routine) },
            #[cfg(not(target_arch = "x86_64"))]
            Width::Avx2 => routine.run::<1, 1>(),
        }
    }

    /// Like [`Kernel::run`], but with AVX-512 if the processor has it and the kernel isn't scalar. For short routines
    /// that spend their time in plain arithmetic. Quantizers gain nothing from AVX-512, and would be compiled a third
    /// time.
    #[allow(unsafe_code)]
    pub(crate) fn run_wide(self, routine: impl Routine) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Width::Avx2 if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") => {
                // SAFETY: the processor has the features for which the function is compiled.
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
