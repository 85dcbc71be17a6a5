//! Throughput of the quantizers, in values per second, scalar and wide:
//! `cargo bench --bench quantize`.

use atombank::DType;
use atombank::kernel::Kernel;
use atombank::quant::encode_row;
use divan::Bencher;
use divan::counter::ItemsCount;

/// The number of values in a row. `ROWS` is the number of rows.
const ROW: usize = 4096;
const ROWS: usize = 16;

fn main() {
    divan::main();
}

/// Sums of uniform numbers, which are nearly normally distributed, as weights are.
fn values() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..ROW * ROWS).map(|_| (0..12).map(|_| uniform()).sum::<f32>() * 0.02).collect()
}

fn quantize(bencher: Bencher, dtype: DType, kernel: &str, led: bool) {
    let Some(kernel) = Kernel::named(kernel) else { return };
    let (values, importance) = (values(), vec![1.0; ROW]);
    let mut out = vec![0; dtype.bytes_of(ROW as u64, ROW as u64).unwrap() as usize];
    bencher.counter(ItemsCount::new(values.len())).bench_local(|| {
        for row in values.chunks(ROW) {
            encode_row(dtype, row, led.then_some(&importance[..]), &mut out, kernel);
        }
    });
}

const TYPES: [DType; 16] = {
    use DType::*;
    [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, IQ3_S, TQ1_0, TQ2_0, MXFP4]
};

const LED: [DType; 14] = {
    use DType::*;
    [Q4_0, Q4_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS, IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS]
};

#[divan::bench(args = TYPES, sample_count = 10)]
fn scalar(bencher: Bencher, dtype: DType) {
    quantize(bencher, dtype, "scalar", false);
}

#[divan::bench(args = TYPES, sample_count = 10)]
fn avx2(bencher: Bencher, dtype: DType) {
    quantize(bencher, dtype, "avx2", false);
}

#[divan::bench(args = LED, sample_count = 10)]
fn led_scalar(bencher: Bencher, dtype: DType) {
    quantize(bencher, dtype, "scalar", true);
}

#[divan::bench(args = LED, sample_count = 10)]
fn led_avx2(bencher: Bencher, dtype: DType) {
    quantize(bencher, dtype, "avx2", true);
}
