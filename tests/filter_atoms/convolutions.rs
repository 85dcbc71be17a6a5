//! Tests that three plain convolutions compute what the dense one does, with candle's convolutions.

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::program::{copy, done, text};
use super::{CASES, Stored, Tensors, case, numbers, of_file, tensors};

/// A convolution with stride 1 and no padding, in f64: input `[C, T, H, W]`, weight `[O, C/g, ..]`.
fn dense_convolution(input: &[f32], size: [usize; 4], weight: &Stored, groups: usize) -> Vec<f64> {
    let [_, time, height, width] = size;
    let kernel: Vec<usize> = match weight.shape[2..] {
        [t] => vec![t, 1, 1],
        [h, w] => vec![1, h, w],
        _ => weight.shape[2..].to_vec(),
    };
    let (outputs, inputs) = (weight.shape[0], weight.shape[1]);
    let out = [time - kernel[0] + 1, height - kernel[1] + 1, width - kernel[2] + 1];
    let mut result = vec![0.0; outputs * out[0] * out[1] * out[2]];
    for (place, result) in result.iter_mut().enumerate() {
        let (w, h) = (place % out[2], place / out[2] % out[1]);
        let (t, o) = (place / out[2] / out[1] % out[0], place / out[2] / out[1] / out[0]);
        let group = o / (outputs / groups);
        for i in 0..inputs {
            for a in 0..kernel[0] {
                for b in 0..kernel[1] {
                    for c in 0..kernel[2] {
                        let tap = (((o * inputs + i) * kernel[0] + a) * kernel[1] + b) * kernel[2] + c;
                        let from = (((group * inputs + i) * time + t + a) * height + h + b) * width + w + c;
                        *result += f64::from(weight.values[tap]) * f64::from(input[from]);
                    }
                }
            }
        }
    }
    result
}

fn tensor(stored: &Stored, shape: &[usize]) -> Tensor {
    Tensor::from_vec(stored.values.clone(), shape, &Device::Cpu).unwrap()
}

/// The three convolutions of `module` by planes: candle has none of three dimensions.
fn by_planes(weights: &Tensors, module: &str, input: &[f32], size: [usize; 4], groups: usize) -> Vec<f32> {
    let [channels, _, height, width] = size;
    let mut x = Tensor::from_vec(input.to_vec(), &size[..], &Device::Cpu).unwrap();
    let mut n = 1;
    if let Some(temporal) = weights.get(&format!("{module}.0.weight")) {
        n = temporal.shape[0] / channels;
        let taps = temporal.shape[2];
        x = x.permute((2, 3, 0, 1)).unwrap().reshape((height * width, channels, size[1])).unwrap();
        x = x.conv1d(&tensor(temporal, &[channels * n, 1, taps]), 0, 1, 1, channels).unwrap();
        let time = x.dims()[2];
        x = x.reshape((height, width, channels * n, time)).unwrap().permute((3, 2, 0, 1)).unwrap();
    } else {
        x = x.permute((1, 0, 2, 3)).unwrap();
    }
    x = x.contiguous().unwrap();
    if let Some(spatial) = weights.get(&format!("{module}.1.weight")) {
        let taps = &spatial.shape[spatial.shape.len() - 2..];
        x = x.conv2d(&tensor(spatial, &[spatial.shape[0], 1, taps[0], taps[1]]), 0, 1, 1, channels * n).unwrap();
    }
    let mixing = &weights[&format!("{module}.2.weight")];
    x = x.conv2d(&tensor(mixing, &[mixing.shape[0], mixing.shape[1], 1, 1]), 0, 1, 1, groups).unwrap();
    x.permute((1, 0, 2, 3)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn three_convolutions_compute_what_the_dense_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let groups = |module: &str| match module {
        "layer2.0.conv2" => 16,
        "block.3" | "encoder.1" => 2,
        _ => 1,
    };
    for name in CASES {
        let model = case(name).join("model");
        let bank = copy(&case(name).join("bank"), &dir.path().join(format!("{name}-bank")));
        let path = bank.join("adapter_config.json");
        let mut config = of_file(&path);
        let layers = config["layers"].as_object_mut().unwrap();
        layers.iter_mut().for_each(|(module, layer)| layer["groups"] = json!(groups(module)));
        let modules: Vec<String> = layers.keys().cloned().collect();
        fs::write(&path, config.to_string()).unwrap();
        let at = |end: &str| dir.path().join(format!("{name}-{end}.safetensors"));
        let bake = |to: &Path, more: &[&str]| {
            done(&[&["bake", text(&model), text(&bank), "-o", text(to), "--type", "f32", "--quiet"][..], more].concat())
        };
        bake(&at("dense"), &[]);
        bake(&at("three"), &["--to", "three-convolutions"]);
        let (dense, three) = (tensors(&at("dense")), tensors(&at("three")));
        for module in &modules {
            let weight = &dense[&format!("{module}.weight")];
            assert!(!three.contains_key(&format!("{module}.weight")) && !three.contains_key(&format!("{module}.bias")));
            assert_eq!(three.get(&format!("{module}.2.bias")), dense.get(&format!("{module}.bias")));
            // A transposed convolution has its inputs first: as a plain one, it is another function of the same weight.
            let channels = weight.shape[1] * groups(module);
            let size = match weight.shape.len() {
                3 => [channels, 20, 1, 1],
                4 => [channels, 1, 9, 8],
                _ => [channels, 6, 7, 6],
            };
            let input = numbers(size.iter().product(), 3);
            let expected = dense_convolution(&input, size, weight, groups(module));
            let found = by_planes(&three, module, &input, size, groups(module));
            let largest = expected.iter().fold(0.0f64, |largest, v| largest.max(v.abs()));
            let far = expected.iter().zip(&found).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
            assert!(found.len() == expected.len() && far <= 1e-6 * largest, "{name} {module}: {far} of {largest}");
        }
        for (tensor, stored) in &dense {
            let module = tensor.strip_suffix(".weight").or(tensor.strip_suffix(".bias")).unwrap_or_default();
            assert!(modules.iter().any(|known| known == module) || three.get(tensor) == Some(stored), "{tensor}");
        }
    }
}
