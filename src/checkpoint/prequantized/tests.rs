use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::formats::safetensors::SafetensorsFile;
use crate::plan::{Plan, PlannedTensor};
use crate::source::Source;

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/prequantized")
}

fn values(tensor: &PlannedTensor) -> Vec<u32> {
    tensor.read().unwrap().into_iter().map(f32::to_bits).collect()
}

/// The tensor with its values rounded to `dtype`.
fn typed(tensor: &PlannedTensor, dtype: DType) -> PlannedTensor {
    PlannedTensor { dtype, ..tensor.clone() }
}

#[test]
fn every_method_gives_the_values_of_its_library_to_the_bit() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for entry in fs::read_dir(cases()).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let checkpoint = Checkpoint::open(&folder).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&folder.join("expected.safetensors")).unwrap());
        let expected = Plan::taking(&expected);
        assert_eq!(checkpoint.weights().tensors.len(), expected.tensors.len() + 1, "{name}: and the embeddings");
        for wanted in &expected.tensors {
            let found = checkpoint.weights().get(&wanted.name).unwrap_or_else(|| panic!("{name}: {}", wanted.name));
            assert_eq!((&found.shape, found.dtype), (&wanted.shape, DType::BF16), "{name}");
            let exact = typed(found, DType::F32);
            if values(&exact) != values(wanted) {
                wrong.push(name.clone());
                continue;
            }
            // Any range of rows can be read alone, as the executor does.
            let (len, rows) = (found.row_len(), 3..found.rows().min(20));
            let all = wanted.read().unwrap();
            assert!(exact.read_rows(rows.clone()).unwrap() == all[rows.start * len..rows.end * len], "{name}: rows");
            // `rounded` has the values of the model as its library loads it.
            let rounded = checkpoint.rounded().get(&wanted.name).unwrap();
            assert!(values(&typed(rounded, DType::F32)) == values(&typed(wanted, DType::BF16)), "{name}: rounded");
        }
        Plan { tensors: checkpoint.weights().tensors.clone() }.check().unwrap();
        assert!(!checkpoint.config_json.contains_key("quantization_config"), "{name}");
        assert!(!checkpoint.notes().is_empty(), "{name}");
        seen += 1;
    }
    assert!(wrong.is_empty(), "other values: {wrong:?}");
    assert!(seen > 30, "{seen} cases");
}

#[test]
fn blocks_that_gguf_has_too_can_be_kept() {
    let checkpoint = Checkpoint::open(&cases().join("mxfp4")).unwrap();
    let plain = checkpoint.weights().get("experts.down_proj").unwrap();
    let turned = plain.expr.turned().unwrap();
    assert_eq!((turned.shape(), turned.raw_dtype()), (vec![2, 6, 64], Some(DType::MXFP4)));
    let blocks = PlannedTensor { name: "t".into(), dtype: DType::MXFP4, shape: turned.shape(), expr: turned };
    let (blocks, plain) = (blocks.read().unwrap(), typed(plain, DType::F32).read().unwrap());
    for (at, value) in blocks.iter().enumerate() {
        let (expert, output, input) = (at / (6 * 64), at / 64 % 6, at % 64);
        assert_eq!(*value, plain[expert * 6 * 64 + input * 6 + output]);
    }
}

/// A case with other settings or tensors.
struct Changed {
    dir: tempfile::TempDir,
    header: Map<String, Value>,
    data: Vec<u8>,
    config: Value,
}

impl Changed {
    fn of(case: &str) -> Self {
        let folder = cases().join(case);
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let head = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + head]).unwrap();
        let config = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), header, data: bytes[8 + head..].to_vec(), config }
    }

    /// Changes the value of a field about quantization.
    fn with(mut self, field: &str, value: Value) -> Self {
        self.config["quantization_config"][field] = value;
        self
    }

    /// Removes a tensor and assigns its bytes to an unrelated one.
    fn without(mut self, end: &str) -> Self {
        let entry = self.header.remove(&format!("layers.0.up_proj{end}")).unwrap();
        let bytes = (entry["data_offsets"][1].as_u64().unwrap() - entry["data_offsets"][0].as_u64().unwrap()) as usize;
        let other = json!({ "dtype": "I8", "shape": [bytes], "data_offsets": entry["data_offsets"] });
        self.header.insert("gone".to_owned(), other);
        self
    }

    /// Gives a tensor another shape or type with the same number of bytes.
    fn reshaped(mut self, end: &str, dtype: &str, shape: &[usize]) -> Self {
        let entry = self.header.get_mut(&format!("layers.0.up_proj{end}")).unwrap();
        (entry["dtype"], entry["shape"]) = (dtype.into(), json!(shape));
        self
    }

    /// Renames a tensor.
    fn renamed(mut self, end: &str, new: &str) -> Self {
        let entry = self.header.remove(&format!("layers.0.up_proj{end}")).unwrap();
        self.header.insert(format!("layers.0.up_proj{new}"), entry);
        self
    }

    /// Adds a tensor of zeros.
    fn added(mut self, end: &str, dtype: &str, shape: &[usize], bytes: usize) -> Self {
        let offsets = [self.data.len(), self.data.len() + bytes];
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        self.header.insert(format!("layers.0.up_proj{end}"), entry);
        self.data.resize(offsets[1], 0);
        self
    }

    /// Removes the settings of the quantization.
    fn unsaid(mut self) -> Self {
        self.config.as_object_mut().unwrap().remove("quantization_config");
        self
    }

    /// Replaces the first bytes of a tensor.
    fn overwritten(mut self, end: &str, bytes: &[u8]) -> Self {
        let start = self.header[&format!("layers.0.up_proj{end}")]["data_offsets"][0].as_u64().unwrap() as usize;
        self.data[start..start + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn open(&self) -> crate::error::Result<Checkpoint> {
        let header = serde_json::to_vec(&self.header).unwrap();
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &self.data].concat();
        fs::write(self.dir.path().join("model.safetensors"), file).unwrap();
        fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
        Checkpoint::open(self.dir.path())
    }

    fn error(&self) -> String {
        match self.open() {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let max = i64::MAX;
    let cases = [
        (
            Changed::of("awq").with("quant_method", json!("hqq")),
            "config.json: quantization_config.quant_method: expected fp8, fbgemm_fp8, gptq, awq, compressed-tensors, bitsandbytes, mxfp4, modelopt or bitnet, found \"hqq\"",
        ),
        (Changed::of("awq").with("quant_method", json!(null)), "quantization_config.quant_method: expected fp8"),
        (
            Changed::of("awq").with("version", json!("gemv")),
            "quantization_config.version: expected gemm, found \"gemv\"",
        ),
        (Changed::of("awq").with("bits", json!(3)), "bits: expected 4, found 3"),
        (
            Changed::of("awq").with("group_size", json!(24)),
            "up_proj.qweight\": expected inputs in whole groups of 24, found [64, 4]",
        ),
        (Changed::of("awq").with("group_size", json!(0)), "group_size: expected -1, or 1 to 2^31 - 1, found 0"),
        (
            Changed::of("awq").without(".qzeros"),
            "up_proj.qweight\": expected \"layers.0.up_proj.qzeros\" beside it, found none of that name",
        ),
        (
            Changed::of("awq").reshaped(".scales", "I16", &[2, 32]),
            "up_proj.scales\": expected F32 or F16 or BF16, found I16",
        ),
        (Changed::of("gptq-4").without(".scales"), "expected \"layers.0.up_proj.scales\" beside it"),
        (Changed::of("gptq-4").without(".qweight"), "expected tensors as gptq packs weights, found I32"),
        (Changed::of("gptq-4").with("bits", json!(5)), "bits: expected 2, 3, 4 or 8, found 5"),
        (
            Changed::of("gptq-4").with("bits", json!(8)),
            "up_proj.qzeros\": expected [2, 8] for the zero points of each group, found [2, 4]",
        ),
        (Changed::of("gptq-4").with("bits", json!("4")), "bits: expected a whole number, found \"4\""),
        (
            Changed::of("gptq-4").with("group_size", json!(7)),
            "up_proj.scales\": expected scales for 10 groups of 7 inputs, found [2, 32]",
        ),
        (
            Changed::of("gptq-4").with("checkpoint_format", json!("marlin")),
            "checkpoint_format: expected gptq or gptq_v2, found \"marlin\"",
        ),
        (
            Changed::of("gptq-4").overwritten(".g_idx", &[2, 0, 0, 0]),
            "up_proj.g_idx\": expected groups 0 to 1, found 2",
        ),
        (Changed::of("gptq-4").overwritten(".g_idx", &[255; 4]), "found -1"),
        (
            Changed::of("fp8-blocks").reshaped(".weight_scale_inv", "F32", &[2, 1]),
            "weight_scale_inv\": expected a scale for each block of [32, 32] in [32, 64], found [2, 1]",
        ),
        (
            Changed::of("fp8-blocks").reshaped(".weight_scale_inv", "I32", &[1, 2]),
            "expected F32 or F16 or BF16 or F8_E8M0, found I32",
        ),
        (
            Changed::of("fp8-blocks").without(".weight_scale_inv"),
            "up_proj.weight\": expected tensors as fp8 packs weights, found F8_E4M3 [32, 64] that belongs to none",
        ),
        (
            Changed::of("fp8-blocks").without(".weight"),
            "weight_scale_inv\": expected \"layers.0.up_proj.weight\" beside it",
        ),
        (
            Changed::of("fp8-blocks").with("weight_block_size", json!([0, max])),
            "weight_block_size: expected sizes of a block, like [128, 128], found [0,",
        ),
        (
            Changed::of("fp8-channel").reshaped(".weight_scale", "F32", &[1, 32]),
            "expected one scale, or one for each row of [32, 64], found [1, 32]",
        ),
        (
            Changed::of("ct-packed-group").with("config_groups", json!({})),
            "config_groups: expected a group with weights, found none",
        ),
        (
            Changed::of("ct-packed-group")
                .with("config_groups", json!({"a": {"weights": {"num_bits": 4, "group_size": 24}}})),
            "weight_packed\": expected columns in whole groups of 24, found 64",
        ),
        (
            Changed::of("ct-packed-group").with("config_groups", json!({"a": {"weights": {"num_bits": max}}})),
            "config_groups.a.weights.num_bits: expected 1 to 8",
        ),
        (
            Changed::of("ct-packed-group").with("format", json!("marlin-24")),
            "format: expected a dense format, found \"marlin-24\"",
        ),
        (Changed::of("ct-packed-group").with("transform_config", json!({"a": 1})), "transform_config: expected none"),
        (
            Changed::of("ct-packed-group").without(".weight_shape"),
            "expected \"layers.0.up_proj.weight_shape\" beside it",
        ),
        (
            Changed::of("ct-packed-group").overwritten(".weight_shape", &[255; 16]),
            "weight_shape\": expected rows and columns of [32, 8] of 4 bits, found",
        ),
        (
            Changed::of("ct-packed-zeros").without(".weight_scale"),
            "expected \"layers.0.up_proj.weight_scale\" beside it",
        ),
        (Changed::of("bnb-nf4").without(".weight.absmax"), "expected \"layers.0.up_proj.weight.absmax\" beside it"),
        (
            Changed::of("bnb-nf4").without(".weight.quant_state.bitsandbytes__nf4"),
            "expected \"layers.0.up_proj.weight.quant_state.bitsandbytes__nf4\" beside it",
        ),
        (
            Changed::of("bnb-nf4").overwritten(".weight.quant_state.bitsandbytes__nf4", b"[]"),
            "expected a quantization state as JSON",
        ),
        (
            Changed::of("bnb-nf4").reshaped(".weight.absmax", "F32", &[4, 8]),
            "absmax\": expected [32] for each block of the weight, found [4, 8]",
        ),
        (Changed::of("bnb-int8").reshaped(".SCB", "F32", &[4, 8]), "SCB\": expected [32] for each row, found [4, 8]"),
        (Changed::of("bnb-int8").without(".SCB"), "expected tensors as bitsandbytes packs weights, found I8 [32, 64]"),
        (Changed::of("bnb-int8").overwritten(".weight_format", &[1]), "weight_format\": expected 0, values row by row"),
        (
            Changed::of("nvfp4").reshaped(".weight_scale", "F8_E4M3", &[16, 8]),
            "weight_scale\": expected [32, 4] for the scales of each group, found [16, 8]",
        ),
        (
            Changed::of("bitnet").reshaped(".weight_scale", "I16", &[1]),
            "weight_scale\": expected F32 or F16 or BF16, found I16",
        ),
        (
            Changed::of("bitnet").with("linear_class", json!("new")),
            "linear_class: expected bitlinear or autobitlinear, found \"new\"",
        ),
        (
            Changed::of("fp8-tensor").unsaid().renamed(".weight_scale_inv", ".scale"),
            "up_proj.weight\": expected a quantization_config in config.json that says how it is scaled, found none, and",
        ),
        (
            Changed::of("fp8-modelopt").added(".weight_scale_inv", "F32", &[1], 4),
            "expected one scale for \"layers.0.up_proj.weight\", found a second",
        ),
        (
            Changed::of("ct-int8-channel").added(".weight_g_idx", "I32", &[8], 32),
            "up_proj.weight_g_idx\": expected tensors as compressed-tensors packs weights",
        ),
        (Changed::of("bitnet").without(".weight"), "expected \"layers.0.up_proj.weight\" beside it"),
    ];
    for (case, expected) in cases {
        let error = case.error();
        assert!(error.contains(expected) && !error.contains('\n') && !error.contains("remove"), "{error}\n{expected}");
    }
    // Without settings in config.json, a scale for a cast weight is an error.
    let mut unsaid = Changed::of("fp8-blocks");
    unsaid.config["quantization_config"] = Value::Null;
    let error = unsaid.error();
    assert!(error.contains("up_proj.weight\": expected a quantization_config in config.json"), "{error}");
}

#[test]
fn settings_are_found_wherever_they_stand() {
    let moved = |change: fn(&mut Value, Value)| {
        let mut case = Changed::of("gptq-4");
        let settings = case.config["quantization_config"].take();
        case.config.as_object_mut().unwrap().remove("quantization_config");
        change(&mut case.config, settings);
        case.open().unwrap()
    };
    for checkpoint in [
        moved(|config, settings| config["text_config"] = json!({ "quantization_config": settings, "hidden_size": 4 })),
        moved(|config, settings| config["compression_config"] = settings),
        moved(|config, settings| config["quantization_config"] = json!({ "quantization_config": settings })),
    ] {
        assert_eq!(checkpoint.weights().get("layers.0.up_proj.weight").unwrap().shape, [32, 64]);
        assert!(!checkpoint.config_json.contains_key("compression_config"));
        let inner = checkpoint.config_json.get("text_config");
        assert!(inner.is_none_or(|inner| inner.as_object().unwrap().len() == 1), "{inner:?}");
    }
    // ModelOpt's own file has the settings if config.json doesn't.
    let mut case = Changed::of("nvfp4");
    case.config.as_object_mut().unwrap().remove("quantization_config");
    let own =
        json!({ "producer": { "name": "modelopt" }, "quantization": { "quant_algo": "NVFP4", "group_size": 16 } });
    fs::write(case.dir.path().join("hf_quant_config.json"), own.to_string()).unwrap();
    let checkpoint = case.open().unwrap();
    assert_eq!(checkpoint.weights().get("layers.0.up_proj.weight").unwrap().shape, [32, 64]);
    let files = checkpoint.files_for(checkpoint.weights()).unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["config.json"], "the file is true no longer");
}

#[test]
fn a_plain_model_that_says_it_is_packed_is_taken_as_it_is() {
    let mut case = Changed::of("bnb-nf4");
    case.header.retain(|name, _| name == "embed.weight" || name == "__metadata__");
    let end = case.header["embed.weight"]["data_offsets"][1].as_u64().unwrap() as usize;
    let start = case.header["embed.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    case.data = case.data[start..end].to_vec();
    case.header["embed.weight"]["data_offsets"] = json!([0, end - start]);
    let checkpoint = case.open().unwrap();
    assert_eq!(checkpoint.weights().tensors.len(), 1);
    assert!(checkpoint.notes()[0].contains("none is packed"), "{:?}", checkpoint.notes());
}

#[test]
fn scales_of_activations_are_left_out_with_a_note() {
    let checkpoint = Changed::of("fp8-blocks").open().unwrap();
    let notes = checkpoint.notes().join("\n");
    assert!(notes.contains("scales of activations, 1 tensors like layers.0.up_proj.input_scale"), "{notes}");
    assert!(notes.contains("1 weights are unpacked (fp8)"), "{notes}");
}
