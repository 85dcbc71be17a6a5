//! Throughput of encoding, decoding and the plan's executor: `cargo bench --bench convert`.

use std::sync::Arc;

use atombank::DType;
use atombank::formats::safetensors;
use atombank::plan::{self, Expr, Plan, PlannedTensor, Staging, Sums};
use atombank::quant;
use divan::Bencher;
use divan::counter::BytesCount;

const ELEMS: usize = 1 << 20;

fn main() {
    divan::main();
}

fn values() -> Vec<f32> {
    (0..ELEMS).map(|i| ((i * 2654435761) % 1000) as f32 / 500.0 - 1.0).collect()
}

#[divan::bench(args = ["F16", "BF16", "Q8_0"])]
fn encode(bencher: Bencher, name: &str) {
    let dtype = dtype(name);
    let values = values();
    let mut out = vec![0; dtype.bytes_of(ELEMS as u64, ELEMS as u64).unwrap() as usize];
    bencher.counter(BytesCount::of_slice(&values)).bench_local(|| quant::encode(dtype, &values, &mut out));
}

#[divan::bench(args = ["F16", "BF16", "Q8_0"])]
fn decode(bencher: Bencher, name: &str) {
    let dtype = dtype(name);
    let mut values = values();
    let mut bytes = vec![0; dtype.bytes_of(ELEMS as u64, ELEMS as u64).unwrap() as usize];
    quant::encode(dtype, &values, &mut bytes);
    bencher.counter(BytesCount::of_slice(&values)).bench_local(|| quant::decode(dtype, &bytes, &mut values));
}

fn dtype(name: &str) -> DType {
    match name {
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        _ => DType::Q8_0,
    }
}

/// The executor on 64 MiB of weights, with and without an added update of rank 16.
#[divan::bench(args = [0, 16], sample_count = 10)]
fn execute(bencher: Bencher, rank: usize) {
    let (rows, cols) = (4096, 4096);
    let values: Arc<[f32]> = (0..rows * cols).map(|i| (i % 1000) as f32 / 500.0 - 1.0).collect();
    let mut expr = Expr::Values { shape: vec![rows, cols], values };
    if rank > 0 {
        let factor = |shape: [usize; 2]| {
            let values = vec![0.01; shape[0] * shape[1]].into();
            Box::new(Expr::Values { shape: shape.to_vec(), values })
        };
        let (left, right) = (factor([rows, rank]), factor([rank, cols]));
        let delta = Expr::Product { scale: 2.0, left, right, sums: Sums::Product };
        expr = Expr::Add { of: Box::new(expr), delta: Box::new(delta) };
    }
    let tensor = PlannedTensor { name: "w".into(), dtype: DType::BF16, shape: vec![rows, cols], expr };
    let plan = Plan { tensors: vec![tensor] };
    let layout = safetensors::layout(&plan.tensors, "model", u64::MAX).unwrap();
    let dir = tempfile::tempdir().unwrap();
    bencher.counter(BytesCount::new(rows * cols * 4)).bench_local(|| {
        let staging = Staging::file(&dir.path().join("model.safetensors"), true).unwrap();
        plan::execute(&plan, &layout, &staging, plan::Options::default(), &|_| ()).unwrap();
    });
}
