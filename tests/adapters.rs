//! Tests adapters of all of PEFT's kinds, which must be merged like PEFT merges them, and those of LyCORIS:
//! `fixtures/adapters`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atombank::adapter;
use atombank::adapter::peft::{Base, Changes};
use atombank::adapter::{HostTensor, save_tensors};
use atombank::checkpoint::Checkpoint;
use atombank::convert::Opening;
use atombank::dtype::DType;
use atombank::formats::safetensors::SafetensorsFile;
use atombank::merge::combine::Weights;
use atombank::merge::with_adapters;
use atombank::plan::{Plan, PlannedTensor};
use atombank::report::{AdapterReport, Report};
use atombank::source::Source;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters")
}

type Merged = atombank::Result<BTreeMap<String, PlannedTensor>>;

/// Merges the adapter in `folder` into `base`. Returns the tensors by name.
fn merge(folder: &Path, base: &Path) -> Merged {
    merge_what(base, |base| adapter::open(folder, base))
}

/// Merges the adapter that `open` returns for `base`.
fn merge_what(base: &Path, open: impl Fn(&Base) -> atombank::Result<Changes>) -> Merged {
    let checkpoint = Checkpoint::open(base)?;
    let base = Base::of(&checkpoint);
    let changes = open(&base)?;
    let merged = with_adapters(&base, checkpoint.weights(), &[changes], &Weights::new([1.0]))?;
    merged.plan.check()?;
    Ok(merged.plan.tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect())
}

fn tensors(file: &Path) -> BTreeMap<String, PlannedTensor> {
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(file).unwrap());
    Plan::taking(&source).tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect()
}

/// Merges an adapter and compares every tensor with PEFT's result, or with the base's if PEFT doesn't change it.
fn compare(root: &Path, case: &str, base: &str, near: bool) {
    let folder = root.join(case);
    for dtype in DTYPES {
        let base = root.join("base").join(format!("{base}-{dtype}"));
        let merged = merge(&folder, &base).unwrap_or_else(|error| panic!("{case}: {error}"));
        same(case, &base, &merged, &folder.join(format!("merged-{dtype}.safetensors")), near);
    }
}

const DTYPES: [&str; 2] = ["float32", "bfloat16"];

/// Compares every tensor that was merged into `base` with the one in the file `expected`, or with the base's if there
/// is none. With `near`, values may differ by one step of the output's type or, in float32, by one step of the largest
/// value in the tensor.
fn same(case: &str, base: &Path, merged: &BTreeMap<String, PlannedTensor>, expected: &Path, near: bool) {
    let expected = tensors(expected);
    let before = Checkpoint::open(base).unwrap();
    assert!(!expected.is_empty());
    for (name, tensor) in merged {
        let of = expected.get(name).unwrap_or_else(|| before.weights().get(name).unwrap());
        let (found, wanted) = (tensor.read().unwrap(), of.read().unwrap());
        assert_eq!((found.len(), tensor.dtype), (wanted.len(), of.dtype));
        let step = if tensor.dtype == DType::F32 { f32::EPSILON } else { 1.0 / 128.0 };
        let largest = wanted.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
        let off = |(_, (found, wanted)): &(usize, (&f32, &f32))| match near {
            true => (*found - *wanted).abs() > step * wanted.abs() + 2.0 * f32::EPSILON * largest,
            false => found.to_bits() != wanted.to_bits(),
        };
        let far: Vec<_> = found.iter().zip(&wanted).enumerate().filter(off).take(3).collect();
        assert!(far.is_empty(), "{case}: {name} in {}: {far:?}", base.display());
    }
    assert!(expected.keys().all(|name| merged.contains_key(name)), "{case}: a tensor is missing");
}

type Tensors = BTreeMap<String, HostTensor>;

/// The adapter of a case with changed config and tensors, in its own folder.
fn changed(case: &str, config: serde_json::Value, change: impl FnOnce(&mut Tensors)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = fixtures().join(case);
    let mut json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&std::fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    json.extend(config.as_object().unwrap().clone());
    let mut values = host(&from.join("adapter_model.safetensors"));
    change(&mut values);
    save_tensors(&values, "adapter_model", &dir.path().join("adapter")).unwrap();
    std::fs::write(dir.path().join("adapter/adapter_config.json"), serde_json::to_vec(&json).unwrap()).unwrap();
    dir
}

fn host(file: &Path) -> Tensors {
    let read = |t: PlannedTensor| HostTensor { values: t.read().unwrap().into(), shape: t.shape };
    tensors(file).into_iter().map(|(name, tensor)| (name, read(tensor))).collect()
}

fn zeros(shape: &[usize]) -> HostTensor {
    HostTensor { shape: shape.to_vec(), values: vec![0.0; shape.iter().product()].into() }
}

/// Kinds whose merged weights have the same bits.
const SAME: &[(&str, &str)] = &[
    ("ia3", "qwen2"),
    ("ia3-conv1d", "gpt2"),
    ("loha", "qwen2"),
    ("lokr", "qwen2"),
    ("lokr-low-rank", "qwen2"),
    ("vera", "qwen2"),
    ("vera-conv1d", "gpt2"),
    ("oft", "qwen2"),
    ("oft-blocks", "qwen2"),
    ("oft-shared", "qwen2"),
    ("randlora", "qwen2"),
    ("randlora-conv1d", "gpt2"),
    ("adalora", "qwen2"),
    ("adalora-whole", "gpt2"),
    ("oft-embedding", "qwen2"),
    ("oft-coft", "qwen2"),
    ("lora", "qwen2"),
    ("lora-conv1d", "gpt2"),
    ("lora-embedding", "qwen2"),
    ("lora-dora", "qwen2"),
    ("lora-dora-conv1d", "gpt2"),
    ("lora-biases", "qwen2"),
    ("lora-saved", "qwen2"),
    ("lora-experts", "qwen3moe"),
    ("lora-fan-in", "llama4"),
    ("lora-conv1d-unsaid", "openai"),
    ("tokens", "qwen2"),
    ("norms", "qwen2"),
    ("vblora", "qwen2"),
    ("conv-lora", "net"),
    ("conv-dora", "net"),
    ("conv-loha", "net"),
    ("conv-lokr", "net"),
    ("conv-lokr-whole", "net"),
    ("conv-ia3", "net"),
    ("conv-oft", "net"),
    ("conv-adalora", "net"),
    ("beft", "qwen2"),
    ("delora", "qwen2"),
    ("gralora", "qwen2"),
    ("gralora-conv1d", "gpt2"),
    ("hira", "qwen2"),
    ("hira-conv1d", "gpt2"),
    ("miss", "qwen2"),
    ("miss-bat", "qwen2"),
    ("miss-mini", "qwen2"),
    ("pvera", "qwen2"),
    ("shira", "qwen2"),
    ("supertuning", "qwen2"),
    ("tinylora", "qwen2"),
    ("unilora", "qwen2"),
    ("unilora-saved", "qwen2"),
    ("waveft", "qwen2"),
    ("waveft-direct", "qwen2"),
    ("lora-blocks", "qwen2"),
    ("lora-velora", "qwen2"),
    ("lora-monteclora", "qwen2"),
    ("deft", "qwen2"),
    ("glora-vector", "qwen2"),
];

/// Kinds with operations whose order of summation in torch depends on the shapes and the machine.
const NEAR: &[(&str, &str)] = &[
    ("oft-solve", "qwen2"),
    ("boft", "qwen2"),
    ("vblora-topk", "qwen2"),
    ("lora-experts-llama4", "llama4"),
    ("c3a", "qwen2"),
    ("deft-qr", "qwen2"),
    ("fourierft", "qwen2"),
    ("fourierft-conv1d", "gpt2"),
    ("glora", "qwen2"),
    ("hra", "qwen2"),
    ("hra-orthogonal", "qwen2"),
    ("road", "qwen2"),
    ("road-4", "qwen2"),
    ("waveft-db2", "gpt2"),
    ("lora-kasa", "qwen2"),
    ("conv-hra", "net"),
    ("conv-hira", "net"),
    ("peanut", "qwen2"),
];

#[test]
fn every_kind_is_merged_to_the_bits_of_peft() {
    let root = fixtures();
    for (case, base) in SAME {
        compare(&root, case, base, false);
    }
    for (case, base) in NEAR {
        compare(&root, case, base, true);
    }
}

#[test]
fn adapters_are_merged_into_weights_of_float64_to_the_bits_of_peft() {
    let bytes = |tensor: &PlannedTensor| {
        let mut bytes = Vec::new();
        tensor.encode_rows(0..tensor.rows(), &mut Vec::new(), &mut bytes).unwrap();
        bytes
    };
    let root = fixtures().join("doubles");
    let before = tensors(&root.join("base/model.safetensors"));
    for case in ["lora", "lora-saved-in-float32", "dora", "loha", "lokr", "ia3"] {
        let merged = merge(&root.join(case), &root.join("base")).unwrap_or_else(|error| panic!("{case}: {error}"));
        let expected = tensors(&root.join(case).join("merged.safetensors"));
        assert!(expected.len() >= 2);
        for (name, tensor) in &merged {
            let of = expected.get(name).unwrap_or(&before[name]);
            assert_eq!((tensor.dtype, &tensor.shape), (DType::F64, &of.shape), "{case}: {name}");
            assert_eq!(bytes(tensor), bytes(of), "{case}: {name}");
        }
    }
}

#[test]
fn kinds_that_are_computed_in_float32_alone_are_refused_for_weights_of_float64() {
    let root = fixtures().join("doubles");
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("adapter");
    let vector = |value: f32| HostTensor { shape: vec![7], values: vec![value; 7].into() };
    let name = |part: &str| format!("base_model.model.block.first.road_{part}");
    let tensors = [(name("theta"), vector(0.1)), (name("alpha"), vector(1.1))].into();
    save_tensors(&tensors, "adapter_model", &folder).unwrap();
    let config =
        serde_json::json!({ "peft_type": "ROAD", "group_size": 2, "variant": "road_1", "target_modules": ["first"] });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let error = merge(&folder, &root.join("base")).unwrap_err().to_string();
    let expected = "adapter_config.json: peft_type: expected changes that this version computes in F64, as \
                    \"block.first.weight\" of the base is, found ROAD";
    assert!(error.contains(expected), "{error}");
    // Where the output is F32, so is the computation.
    let base = Checkpoint::open(&root.join("base")).unwrap();
    adapter::open(&folder, &Base::of(&base).retyped()).unwrap();
}

/// How far weights may be off in float32 whose singular values LAPACK computes in float32, in units of the largest.
const DECOMPOSED: f32 = 8.0;

#[test]
fn weights_that_are_decomposed_are_merged_to_the_precision_of_lapack() {
    let root = fixtures();
    // In 16 bits, the bits are the same.
    let merged = merge(&root.join("osf"), &root.join("base/qwen2-bfloat16")).unwrap();
    same("osf", &root.join("base/qwen2-bfloat16"), &merged, &root.join("osf/merged-bfloat16.safetensors"), false);
    for case in ["osf", "frod"] {
        let merged = merge(&root.join(case), &root.join("base/qwen2-float32")).unwrap();
        for (name, expected) in tensors(&root.join(case).join("merged-float32.safetensors")) {
            let (found, wanted) = (merged[&name].read().unwrap(), expected.read().unwrap());
            let largest = wanted.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
            let off = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off <= DECOMPOSED * f32::EPSILON * largest, "{case}: {name}: {off}");
        }
    }
}

#[test]
fn a_lora_of_a_convolution_with_groups_is_refused_because_no_kernel_is_that_model() {
    let folder = changed("conv-lora", serde_json::json!({"target_modules": ["grouped"]}), |tensors| {
        tensors.clear();
        let name = |factor: &str| format!("base_model.model.block.grouped.lora_{factor}.weight");
        tensors.insert(name("A"), zeros(&[4, 8, 3, 1]));
        tensors.insert(name("B"), zeros(&[24, 2, 1, 1]));
    });
    let error = merge(&folder.path().join("adapter"), &fixtures().join("base/net-float32")).unwrap_err().to_string();
    let expected =
        "grouped.lora_A.weight\": expected a convolution without groups, found 2 groups, and a LoRA that mixes";
    assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
}

#[test]
fn a_kernel_of_another_shape_is_refused_by_name() {
    for (case, tensor, shape, expected) in [
        ("conv-lora", "block.two.lora_A.weight", &[4, 4, 3, 2][..], "expected [4, 4, 3, 3] by adapter_config.json"),
        ("conv-loha", "block.two.hada_t1", &[2, 2, 3, 2], "expected [2, 2, 3, 3] by adapter_config.json"),
        ("conv-ia3", "block.two.ia3_l", &[1, 15, 1, 1], "expected [1, 16, 1, ..] by the base model"),
        ("conv-lokr-whole", "block.two.lokr_w2", &[4, 2, 3, 4], "expected a matrix"),
    ] {
        let folder = changed(case, serde_json::json!({}), |tensors| {
            let name = format!("base_model.model.{tensor}");
            assert!(tensors.insert(name, zeros(shape)).is_some(), "{tensor}");
        });
        let error =
            merge(&folder.path().join("adapter"), &fixtures().join("base/net-float32")).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(tensor) && error.lines().count() == 1, "{error}");
    }
}

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

#[test]
fn kinds_that_no_weight_can_stand_for_are_refused_by_name() {
    for (kind, expected) in [
        ("XLORA", "peft_type: expected an adapter that is the same for every input, found XLORA, which picks among"),
        ("POLY", "found POLY, which picks among several for each: no one weight is the model"),
        ("PREFIX_TUNING", "found PREFIX_TUNING, which learns inputs beside the prompt: there is no weight to merge"),
        ("P_TUNING", "found P_TUNING, which learns inputs"),
        ("QUERYABLE_LORA", "found QUERYABLE_LORA, an atom bank; fix an instruction with `jobs::bake`"),
        ("ADAMSS", "found ADAMSS, whose weights depend on a clustering by scikit-learn"),
        ("PSOFT", "found PSOFT, whose weights depend on the signs that LAPACK happens to give singular vectors"),
        (
            "LILY",
            "expected one of the kinds this version merges (ADALORA, BEFT, BOFT, BONE, C3A, DEFT, DELORA, FILTER_ATOMS, FO",
        ),
    ] {
        let dir = changed("loha", serde_json::json!({ "peft_type": kind }), |_| ());
        let error = merge(&dir.path().join("adapter"), &fixtures().join("base/qwen2-float32")).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn factors_of_modules_that_the_config_does_not_select_are_left_out() {
    let base = fixtures().join("base/qwen2-float32");
    let own = tensors(&base.join("model.safetensors"));
    let whole = merge(&fixtures().join("lora"), &base).unwrap();
    let all: Vec<&String> = own.keys().filter(|name| !whole[*name].same_values(&own[*name]).unwrap()).collect();
    let is_first = |name: &&&String| name.contains("layers.0.");
    for (config, wanted) in [
        (serde_json::json!({"layers_to_transform": [0]}), all.iter().filter(is_first).count()),
        (serde_json::json!({"exclude_modules": ["q_proj"]}), all.iter().filter(|n| !n.contains("q_proj")).count()),
        (serde_json::json!({"target_modules": "all-linear"}), all.len()),
    ] {
        let dir = changed("lora", config.clone(), |_| ());
        let merged = merge(&dir.path().join("adapter"), &base).unwrap();
        let differ = own.keys().filter(|name| !merged[*name].same_values(&own[*name]).unwrap()).count();
        assert_eq!(differ, wanted, "{config}");
    }
}

#[test]
fn factors_of_tied_embeddings_and_head_are_each_other_s_transposes() {
    let transposed = |of: &HostTensor| {
        let [rows, cols] = of.shape[..] else { panic!("a matrix") };
        let values: Vec<f32> = (0..cols)
            .flat_map(|col| (0..rows).map(move |row| (row, col)))
            .map(|(row, col)| of.values[row * cols + col])
            .collect();
        HostTensor { shape: vec![cols, rows], values: values.into() }
    };
    let (head, embeddings) = ("base_model.model.lm_head", "base_model.model.model.embed_tokens");
    let (untied, dir) = (fixtures().join("base/qwen2-float32"), tempfile::tempdir().unwrap());
    let base = dir.path().join("base");
    let mut weights = host(&untied.join("model.safetensors"));
    weights.remove("lm_head.weight");
    save_tensors(&weights, "model", &base).unwrap();
    let config = std::fs::read_to_string(untied.join("config.json")).unwrap();
    let config = config.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    std::fs::write(base.join("config.json"), config).unwrap();
    let tied = serde_json::json!({"ensure_weight_tying": true});
    let copies = changed("lora-embedding", tied.clone(), |tensors| {
        for (of_head, of_embeddings) in [("lora_A.weight", "lora_embedding_B"), ("lora_B.weight", "lora_embedding_A")] {
            let copy = transposed(&tensors[&format!("{embeddings}.{of_embeddings}")]);
            tensors.insert(format!("{head}.{of_head}"), copy);
        }
    });
    merge(&copies.path().join("adapter"), &base).unwrap();
    let others = changed("lora-embedding", tied, |_| ());
    let error = merge(&others.path().join("adapter"), &base).unwrap_err().to_string();
    assert!(error.contains("lm_head.lora_A.weight\": expected the values of"), "{error}");
}

#[test]
fn tensors_that_do_not_fit_config_or_base_are_refused_by_name() {
    type Change = Box<dyn FnOnce(&mut Tensors)>;
    // The name is relative to one module, or shared by all if it starts with a slash.
    let full = |part: &str| match part.strip_prefix('/') {
        Some(shared) => format!("base_model.{shared}"),
        None => format!("{Q}.{part}"),
    };
    let with = |part: &str, shape: &'static [usize]| -> Change {
        let name = full(part);
        Box::new(move |tensors| drop(tensors.insert(name, zeros(shape))))
    };
    let without = |part: &str| -> Change {
        let name = full(part);
        Box::new(move |tensors| assert!(tensors.remove(&name).is_some()))
    };
    let none = serde_json::json!({});
    let cases: Vec<(&str, serde_json::Value, Change, &str)> = vec![
        ("loha", serde_json::json!({"new": 1}), Box::new(|_| ()), "new: expected a field this version knows"),
        ("loha", serde_json::json!({"rank_pattern": {"q_proj": 3}}), Box::new(|_| ()), "hada_w1_a\": expected [16, 3]"),
        ("loha", none.clone(), without("hada_w2_b"), "q_proj.hada_w2_b\": expected a tensor of this name, found none"),
        ("loha", none.clone(), with("hada_t1", &[2, 2]), "q_proj.hada_t1\": expected a tensor that this kind"),
        ("lokr", none.clone(), with("lokr_w1", &[4, 5]), "q_proj.lokr_w1\": expected a factor of [16, 16]"),
        (
            "ia3",
            serde_json::json!({"target_modules": ["q_proj"]}),
            with("ia3_l", &[16, 2]),
            "q_proj.ia3_l\": expected [1, 16] or [16, 1] by the base",
        ),
        (
            "vera",
            none.clone(),
            without("/vera_A"),
            "base_model.vera_A\": expected a tensor of this name, found none; save the adapter",
        ),
        ("vera", none.clone(), with("/vera_B", &[15, 3]), "base_model.vera_B\": expected [16, 3] or larger"),
        ("vera", serde_json::json!({"save_projection": false}), Box::new(|_| ()), "save_projection: expected true"),
        ("oft", none.clone(), with("oft_R.weight", &[4, 5]), "oft_R.weight\": expected upper triangles of blocks"),
        ("oft", none.clone(), with("oft_R.weight", &[5, 6]), "oft_R.weight\": expected upper triangles of blocks"),
        ("oft", serde_json::json!({"oft_block_size": null}), Box::new(|_| ()), "oft_block_size: expected a block size"),
        (
            "oft",
            serde_json::json!({"num_cayley_neumann_terms": 1u64 << 31}),
            Box::new(|_| ()),
            "num_cayley_neumann_terms: expected at most 1000",
        ),
        ("c3a", none.clone(), with("c3a_kernel", &[2, 2, 7]), "c3a_kernel\": expected blocks that make up [16, 16]"),
        ("deft", serde_json::json!({"r": 3}), Box::new(|_| ()), "deft_P\": expected [16, 3]"),
        ("fourierft", none.clone(), with("fourierft_spectrum", &[257]), "expected from 1 to 256 numbers by the base"),
        (
            "glora",
            serde_json::json!({"config_C": "constant"}),
            Box::new(|_| ()),
            "config_C: expected lora or vector or none",
        ),
        ("gralora", serde_json::json!({"gralora_k": 3}), Box::new(|_| ()), "r: expected a multiple of gralora_k, 3"),
        ("hira", none.clone(), without("hira_B"), "q_proj.hira_B\": expected a tensor of this name, found none"),
        ("hra", none.clone(), with("hra_u", &[16, 3]), "q_proj.hra_u\": expected directions, found a column of zeros"),
        (
            "miss",
            serde_json::json!({"init_weights": "bad"}),
            Box::new(|_| ()),
            "init_weights: expected true, false, bat",
        ),
        ("osf", none.clone(), with("osf_svd_params.S_low", &[17]), "S_low\": expected from 1 to 16 singular values"),
        ("peanut", serde_json::json!({"act_fn": "laplace"}), Box::new(|_| ()), "act_fn: expected one of gelu, "),
        (
            "road",
            serde_json::json!({"variant": "road_3"}),
            Box::new(|_| ()),
            "variant: expected road_1, road_2 or road_4",
        ),
        (
            "tinylora",
            none.clone(),
            without("/tinylora_v.1"),
            "base_model.tinylora_v.1\": expected a tensor of this name",
        ),
        ("unilora", serde_json::json!({"r": 1 << 20}), Box::new(|_| ()), "r: expected at most 16, for model.layers.0"),
        (
            "waveft",
            serde_json::json!({"wavelet_family": "coif5"}),
            Box::new(|_| ()),
            "wavelet_family: expected one of the",
        ),
        ("boft", none.clone(), with("boft_R", &[1, 4, 0, 0]), "boft_R\": expected square blocks that make up 16"),
        ("boft", none.clone(), with("boft_R", &[2, 4, 4, 4]), "boft_R\": expected one butterfly factor, found 2"),
        ("boft", none.clone(), with("boft_R", &[1, 3, 4, 4]), "boft_R\": expected square blocks that make up 16"),
        ("vblora", serde_json::json!({"num_vectors": 7}), Box::new(|_| ()), "vblora_vector_bank\": expected [7, 4]"),
        ("vblora", serde_json::json!({"topk": 7}), Box::new(|_| ()), "topk: expected at most num_vectors, 6"),
        ("vblora", none.clone(), with("vblora_logits_B", &[4, 2, 5]), "vblora_logits_B\": expected [4, 2, 6]"),
        ("randlora", none.clone(), with("/randlora_A", &[5, 1, 15]), "randlora_A\": expected [5, 1, 16] or larger"),
        (
            "randlora",
            none.clone(),
            without("randlora_gamma"),
            "q_proj.randlora_gamma\": expected a tensor of this name",
        ),
        ("adalora", none.clone(), with("lora_A", &[5, 16]), "lora_A\": expected [4, 16] or of a lower rank"),
        ("adalora", none.clone(), with("lora_A", &[4, 16]), "lora_A\": expected rank 3 by rank_pattern, found [4, 16]"),
        ("adalora", none.clone(), with("lora_E", &[4, 1]), "lora_E\": expected [3, 1]"),
    ];
    for (case, config, change, expected) in cases {
        let dir = changed(case, config, change);
        let error = merge(&dir.path().join("adapter"), &fixtures().join("base/qwen2-float32"))
            .map(|_| panic!("{case}: merged, in spite of {expected}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{case}: {error}");
        assert_eq!(error.lines().count(), 1);
    }
}

#[test]
fn matrices_of_nothing_are_refused_by_every_kind() {
    // A module without inputs or outputs has no rows that could be divided into blocks.
    for shape in [[0, 16], [16, 0], [0, 0]] {
        let dir = tempfile::tempdir().unwrap();
        let from = fixtures().join("base/qwen2-float32");
        let mut weights = host(&from.join("model.safetensors"));
        for (name, tensor) in &mut weights {
            if name.ends_with("q_proj.weight") || name.ends_with("down_proj.weight") {
                *tensor = zeros(&shape);
            }
        }
        let base = dir.path().join("base");
        save_tensors(&weights, "model", &base).unwrap();
        std::fs::copy(from.join("config.json"), base.join("config.json")).unwrap();
        for (case, change) in
            [("boft", "boft_R"), ("oft-shared", "oft_R.weight"), ("vblora", ""), ("loha", ""), ("lora-dora", "")]
        {
            let adapter = changed(case, serde_json::json!({}), |tensors| match change {
                "boft_R" => drop(tensors.insert(format!("{Q}.boft_R"), zeros(&[1, 4, 0, 0]))),
                "oft_R.weight" => drop(tensors.insert(format!("{Q}.oft_R.weight"), zeros(&[1, 28]))),
                _ => {}
            });
            let error = merge(&adapter.path().join("adapter"), &base).unwrap_err().to_string();
            assert!(error.contains("expected a module of the base with a matrix for its weight"), "{case}: {error}");
        }
        let file = fixtures().join("lycoris/dora.safetensors");
        let error = merge_file(&file, &base).unwrap_err().to_string();
        assert!(error.contains("expected a module of the base with a matrix for its weight"), "{error}");
    }
}

#[test]
fn kinds_for_linear_layers_only_are_refused_on_others() {
    let of_gpt2 = serde_json::json!({"target_modules": ["c_attn"]});
    let name = "base_model.model.transformer.h.0.attn.c_attn.hada_w1_a";
    let dir = changed("loha", of_gpt2.clone(), |tensors| *tensors = [(name.to_owned(), zeros(&[48, 3]))].into());
    let error = merge(&dir.path().join("adapter"), &fixtures().join("base/gpt2-float32")).unwrap_err().to_string();
    assert!(
        error.contains("c_attn.hada_w1_a\": expected a linear layer or a convolution: PEFT has LoHa for no other"),
        "{error}"
    );
    let name = "base_model.model.transformer.h.0.attn.c_attn.c3a_kernel";
    let dir = changed("c3a", of_gpt2, |tensors| *tensors = [(name.to_owned(), zeros(&[6, 2, 8]))].into());
    let error = merge(&dir.path().join("adapter"), &fixtures().join("base/gpt2-float32")).unwrap_err().to_string();
    assert!(error.contains("c_attn.c3a_kernel\": expected a linear layer: PEFT has C3A for no other"), "{error}");
}

/// Merges one file of kohya's kind.
fn merge_file(file: &Path, base: &Path) -> Merged {
    merge_what(base, |base| adapter::open(file, base))
}

/// Files of LyCORIS in `fixtures/adapters/lycoris`, and their base.
const LYCORIS: &[(&str, &str)] = &[
    ("lora", "qwen2"),
    ("lora-rs", "qwen2"),
    ("dora", "qwen2"),
    ("dora-inputs", "qwen2"),
    ("loha", "qwen2"),
    ("loha-dora", "qwen2"),
    ("lokr", "qwen2"),
    ("lokr-both", "qwen2"),
    ("lokr-whole", "qwen2"),
    ("lokr-dora", "qwen2"),
    ("full", "qwen2"),
    ("ia3", "qwen2"),
    ("ia3-inputs", "qwen2"),
    ("glora", "qwen2"),
    ("norms", "gpt2"),
    ("conv-glora", "net"),
    ("conv-ia3", "net"),
    ("conv-ia3-inputs", "net"),
];

#[test]
fn files_of_lycoris_are_merged_to_the_bits_that_it_multiplies_with() {
    let root = fixtures();
    for (case, base) in LYCORIS {
        for dtype in DTYPES {
            let base = root.join("base").join(format!("{base}-{dtype}"));
            let file = root.join("lycoris").join(format!("{case}.safetensors"));
            let merged = merge_file(&file, &base).unwrap_or_else(|error| panic!("{case}: {error}"));
            same(case, &base, &merged, &root.join("lycoris").join(format!("{case}-{dtype}.safetensors")), false);
        }
    }
}

/// Merges the tensors as one file. Returns the error, or the values of the merged tensors.
fn merge_tensors(tensors: &Tensors, base: &str) -> Result<BTreeMap<String, Vec<f32>>, String> {
    let dir = tempfile::tempdir().unwrap();
    save_tensors(tensors, "adapter", &dir.path().join("out")).unwrap();
    let merged = merge_file(&dir.path().join("out/adapter.safetensors"), &fixtures().join("base").join(base))
        .map_err(|error| error.to_string())?;
    let read = |(name, tensor): (String, PlannedTensor)| Ok((name, tensor.read().map_err(|error| error.to_string())?));
    merged.into_iter().map(read).collect()
}

fn number(value: f32) -> HostTensor {
    HostTensor { shape: Vec::new(), values: [value].into() }
}

fn ones(shape: &[usize]) -> HostTensor {
    HostTensor { shape: shape.to_vec(), values: vec![1.0; shape.iter().product()].into() }
}

#[test]
fn modules_of_kohya_are_found_by_paths_with_underscores() {
    let before = Checkpoint::open(&fixtures().join("base/qwen2-float32")).unwrap();
    let before = |name: &str| before.weights().get(name).unwrap().read().unwrap();
    let mut file: Tensors = [
        ("lora_te_model_layers_0_mlp_up_proj.lora_down.weight".to_owned(), ones(&[2, 16])),
        ("lora_te_model_layers_0_mlp_up_proj.lora_up.weight".to_owned(), ones(&[24, 2])),
        ("lora_te_model_layers_0_mlp_up_proj.alpha".to_owned(), number(0.5)),
        ("lycoris_layers_0_self_attn_q_proj.diff".to_owned(), ones(&[16, 16])),
        ("lycoris_layers_0_self_attn_q_proj.diff_b".to_owned(), ones(&[16])),
    ]
    .into();
    // A missing alpha, and an alpha of 0, mean the rank.
    for (alpha, by) in [(Some(0.5), 0.5), (Some(0.0), 2.0), (None, 2.0)] {
        match alpha {
            Some(alpha) => file.insert("lora_te_model_layers_0_mlp_up_proj.alpha".to_owned(), number(alpha)),
            None => file.remove("lora_te_model_layers_0_mlp_up_proj.alpha"),
        };
        let merged = merge_tensors(&file, "qwen2-float32").unwrap();
        for (name, by) in [
            ("model.layers.0.mlp.up_proj.weight", by),
            ("model.layers.0.self_attn.q_proj.weight", 1.0),
            ("model.layers.0.self_attn.q_proj.bias", 1.0),
            ("model.layers.0.self_attn.k_proj.weight", 0.0),
        ] {
            let expected: Vec<f32> = before(name).iter().map(|w| w + by).collect();
            assert_eq!(merged[name], expected, "{name}");
        }
    }
}

#[test]
fn files_of_kohya_that_do_not_fit_are_refused_by_tensor() {
    const UP: &str = "lora_te_model_layers_0_mlp_up_proj";
    let parts = |parts: &[(&str, HostTensor)]| -> Tensors {
        parts.iter().map(|(part, tensor)| (format!("{UP}.{part}"), tensor.clone())).collect()
    };
    let lora = parts(&[("lora_down.weight", ones(&[2, 16])), ("lora_up.weight", ones(&[24, 2]))]);
    let loha = parts(&[
        ("hada_w1_a", ones(&[24, 2])),
        ("hada_w1_b", ones(&[2, 16])),
        ("hada_w2_a", ones(&[24, 2])),
        ("hada_w2_b", ones(&[2, 16])),
    ]);
    let lokr = parts(&[("lokr_w1", ones(&[4, 4])), ("lokr_w2_a", ones(&[6, 1])), ("lokr_w2_b", ones(&[1, 4]))]);
    let whole = parts(&[("lokr_w1", ones(&[4, 4])), ("lokr_w2", ones(&[6, 4]))]);
    let ia3 = parts(&[("weight", ones(&[16])), ("on_input", number(1.0))]);
    let glora = parts(&[
        ("a1.weight", ones(&[16, 2])),
        ("a2.weight", ones(&[2, 16])),
        ("b1.weight", ones(&[24, 2])),
        ("b2.weight", ones(&[2, 16])),
    ]);
    for file in [&lora, &loha, &lokr, &whole, &ia3, &glora] {
        merge_tensors(file, "qwen2-float32").unwrap();
    }
    let other = "lora_te_model_layers_1_mlp_up_proj.diff";
    let again = "lycoris_layers_0_mlp_up_proj.diff";
    let norm = "lora_te_model_layers_0_input_layernorm.lora_up.weight";
    let cases: Vec<(&Tensors, &str, Option<HostTensor>, &str)> = vec![
        (&lora, other, Some(ones(&[24, 16])), "whose path is \"model_layers_1_mlp_up_proj\" with dots, found none"),
        (&lora, again, Some(ones(&[24, 16])), "expected one update of the base's \"model.layers.0.mlp.up_proj\""),
        (&lora, norm, Some(ones(&[16, 2])), "expected a module of the base with a matrix for its weight, found [16]"),
        (&lora, "lora_mid.weight", Some(ones(&[2, 2])), "found part of a Tucker decomposition, which linear layers"),
        (&lora, "lora_up.weight", Some(ones(&[24, 3])), "lora_up.weight\": expected [24, 2] by the base model"),
        (&lora, "lora_up.weight", None, "lora_up.weight\": expected a tensor of this name, found none"),
        (&lora, "lora_down.weight", None, "lora_down.weight\": expected a tensor of this name, found none"),
        (&lora, "lora_down.weight", Some(ones(&[0, 16])), "lora_down.weight\": expected a matrix, found [0, 16]"),
        (&lora, "lora_down.weight", Some(ones(&[2, 16, 1, 1])), "expected a matrix, found [2, 16, 1, 1]"),
        (&lora, "alpha", Some(ones(&[2])), "alpha\": expected one number, found [2]"),
        (&lora, "dora_scale", Some(ones(&[24])), "dora_scale\": expected [24, 1] or [1, 16] by the base model"),
        (&lora, "dora_scale", Some(ones(&[16, 1])), "found [16, 1]; this adapter belongs to another base model"),
        (&lora, "diff", Some(ones(&[24, 16])), "diff\": expected a part of a LoRA, LoHa, LoKr"),
        (&lora, "diff_b", Some(ones(&[24])), "diff_b\": expected a bias of [24] in the base, found none"),
        (&lora, "oft_blocks", Some(ones(&[4, 4, 4])), "oft_blocks\": expected a part of a fixed update"),
        (&lora, "lambda_layer", Some(ones(&[1, 4])), "found part of a T-LoRA, which changes with the time step"),
        (&loha, "hada_w2_a", None, "hada_w2_a\": expected a tensor of this name, found none"),
        (&loha, "hada_w2_b", Some(ones(&[3, 16])), "hada_w2_b\": expected [2, 16]"),
        (&loha, "hada_t1", Some(ones(&[2, 2])), "found part of a Tucker decomposition"),
        (&lokr, "lokr_w1", None, "lokr_w1_a\": expected a tensor of this name, found none"),
        (&lokr, "lokr_w1", Some(ones(&[4, 5])), "lokr_w1\": expected a factor of [24, 16], as [6, 4] is, found [4, 5]"),
        (&lokr, "lokr_w2_a", Some(ones(&[6, 2])), "lokr_w2_a\": expected [6, 1]"),
        (&lokr, "lokr_w2_b", None, "lokr_w2_b\": expected a tensor of this name, found none"),
        (&whole, "alpha", Some(number(22.627)), "found 22.627: it was trained with rs_lora"),
        (&ia3, "on_input", None, "on_input\": expected a tensor of this name, found none"),
        (&ia3, "on_input", Some(number(0.0)), "up_proj.weight\": expected [24] by the base model"),
        (&ia3, "on_input", Some(number(0.5)), "on_input\": expected 0 or 1, found another"),
        (&ia3, "weight", Some(ones(&[24])), "up_proj.weight\": expected [16] by the base model"),
        (&glora, "a1.weight", None, "a1.weight\": expected a tensor of this name, found none"),
        (&glora, "b2.weight", Some(ones(&[2, 17])), "b2.weight\": expected [2, 16]"),
        (&glora, "dora_scale", Some(ones(&[24, 1])), "dora_scale\": expected a part of a LoRA, LoHa, LoKr"),
    ];
    for (file, part, tensor, expected) in cases {
        let mut file = file.clone();
        let name = if part.contains("_layers_") { part.to_owned() } else { format!("{UP}.{part}") };
        match tensor {
            Some(tensor) => file.insert(name, tensor),
            None => file.remove(&name),
        };
        let error = merge_tensors(&file, "qwen2-float32").expect_err(expected);
        assert!(error.contains(expected), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}

/// The report of `inspect` on an adapter.
fn inspected(path: &Path) -> AdapterReport {
    match Report::of(path, Opening::default()).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
        Report::Lora(report) | Report::Adapter(report) => *report,
        other => panic!("{}: {other:?}", path.display()),
    }
}

#[test]
fn every_kind_that_is_merged_is_shown_without_a_base() {
    for (case, method, ranks) in [
        ("lora", "LoRA", &[2, 3][..]),
        ("lora-dora", "DoRA", &[3]),
        ("lora-embedding", "LoRA", &[3]),
        ("loha", "LoHa", &[2, 3]),
        ("lokr", "LoKr", &[]),
        ("adalora", "AdaLoRA", &[3, 4]),
        ("vera", "VeRA", &[]),
        ("oft", "OFT", &[]),
        ("ia3", "(IA)3", &[]),
        ("vblora", "VB-LoRA", &[]),
        ("randlora", "RandLoRA", &[]),
        ("tokens", "rows of embeddings", &[]),
        ("norms", "tuned norms", &[]),
        ("c3a", "C3A", &[]),
        ("delora", "DeLoRA", &[2, 3]),
        ("hira", "HiRA", &[3]),
        ("hra", "HRA", &[]),
        ("miss-bat", "MiSS", &[]),
        ("supertuning", "Super-Tuning", &[2]),
        ("unilora", "UniLoRA", &[]),
        ("waveft", "WaveFT", &[]),
    ] {
        let report = inspected(&fixtures().join(case));
        assert_eq!((report.method.as_str(), &report.problem), (method, &None), "{case}");
        let found: Vec<usize> = report.ranks.keys().copied().collect();
        assert_eq!(found, ranks, "{case}: {:?}", report.ranks);
    }
    for (case, _) in SAME.iter().chain(NEAR).chain(&[("osf", ""), ("frod", "")]) {
        let report = inspected(&fixtures().join(case));
        let held = tensors(&fixtures().join(case).join("adapter_model.safetensors"));
        assert_eq!(report.tensors.list.len(), held.len(), "{case}");
        assert_eq!(report.parameters, held.values().map(PlannedTensor::elems).sum::<usize>(), "{case}");
        assert!(!report.modules.is_empty(), "{case}");
        assert!(report.modules.iter().all(|module| !module.contains("lora") && module != "weight"), "{report:?}");
    }
    for (case, _) in LYCORIS {
        let report = inspected(&fixtures().join("lycoris").join(format!("{case}.safetensors")));
        assert!(!report.method.contains("unknown") && !report.modules.is_empty(), "{case}: {report:?}");
    }
    assert_eq!(inspected(&fixtures().join("lycoris/lora.safetensors")).method, "LoRA");
}

#[test]
fn adapters_that_are_not_merged_are_shown_with_the_reason() {
    let tokens = serde_json::json!({"alora_invocation_tokens": [5, 6]});
    let dir = changed("lora-conv1d", tokens, |_| ());
    let report = inspected(&dir.path().join("adapter"));
    assert_eq!((report.method.as_str(), report.invocation_tokens.as_slice()), ("activated LoRA", &[5, 6][..]));
    let refused = merge(&dir.path().join("adapter"), &fixtures().join("base/gpt2-float32")).unwrap_err().to_string();
    assert!(
        refused.contains("alora_invocation_tokens: expected a LoRA that is a fixed change of weights"),
        "{refused}"
    );
    assert_eq!(report.problem, Some(refused));
    let dir = changed("loha", serde_json::json!({ "peft_type": "XLORA" }), |_| ());
    let problem = inspected(&dir.path().join("adapter")).problem.unwrap();
    assert!(problem.contains("found XLORA, which picks among several"), "{problem}");
    // For a folder that contains an adapter's folder, the report is about that adapter.
    assert_eq!(inspected(dir.path()).method, "XLORA");
}

#[test]
fn another_base_is_guessed_only_where_layers_or_shapes_show_it() {
    let renamed = |from: &'static str, to: &'static str| {
        let dir = changed("lora", serde_json::json!({"target_modules": null}), |tensors| {
            let old = std::mem::take(tensors);
            tensors.extend(old.into_iter().map(|(name, tensor)| (name.replace(from, to), tensor)));
        });
        merge(&dir.path().join("adapter"), &fixtures().join("base/qwen2-float32")).unwrap_err().to_string()
    };
    let misspelt = renamed("q_proj", "qproj");
    assert!(misspelt.contains("none of that name there; the base's modules are called like"), "{misspelt}");
    assert!(misspelt.contains("\"model.layers.0.self_attn."), "{misspelt}");
    let deep = renamed("layers.0.", "layers.70.");
    assert!(deep.contains("no layer of this number: this adapter belongs to another base model"), "{deep}");
    let wrapped = renamed("base_model.model.", "base_model.model.student.inner.");
    assert!(!wrapped.contains("another base"), "{wrapped}");
    let file = |module: &str| -> Tensors { [(format!("{module}.diff"), ones(&[24, 16]))].into() };
    let deep = merge_tensors(&file("lora_te_model_layers_7_mlp_up_proj"), "qwen2-float32").unwrap_err();
    assert!(deep.contains("another base model"), "{deep}");
    let misspelt = merge_tensors(&file("lora_te_model_layers_0_mlp_up"), "qwen2-float32").unwrap_err();
    assert!(misspelt.ends_with("found none"), "{misspelt}");
}
