//! Tests quantization as a user does it: from a GGUF, from a folder, with importance, as a dry run,
//! and refusals.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};

use atombank::DType;
use atombank::formats::gguf::{GgufFile, GgufModel};
use atombank::source::Source;
use program::{INPUT, USAGE, done, fixture, refused_leaving, text};
use serde_json::Value;

/// The llama of the fixtures as a GGUF in f32, and other files that a test makes.
struct Model {
    dir: tempfile::TempDir,
    gguf: PathBuf,
}

impl Model {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let gguf = dir.path().join("f32.gguf");
        done(&["convert", text(&fixture("convert/llama/model")), "-o", text(&gguf), "--type", "f32", "--quiet"]);
        Self { dir, gguf }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn quantize(&self, name: &str, options: &[&str]) {
        let target = self.at(name);
        done(&[&["quantize", text(&self.gguf), "-o", text(&target)], options].concat());
    }

    #[track_caller]
    fn refusal(&self, exit: i32, options: &[&str]) -> String {
        let target = self.at("never.gguf");
        refused_leaving(
            exit,
            self.dir.path(),
            &[&["quantize", text(&self.gguf), "-o", text(&target)], options].concat(),
        )
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

fn dtype(path: &Path, tensor: &str) -> DType {
    let file = GgufFile::open(path).unwrap();
    file.tensors().iter().find(|t| t.name == tensor).unwrap().dtype
}

#[test]
fn one_command_from_a_folder_does_what_two_do() {
    let m = Model::new();
    let imatrix = fixture("quant/imatrix/llama.gguf");
    let led = ["--imatrix", text(&imatrix)];
    for (file_type, options) in [("Q4_K_M", &[][..]), ("q2_k", &[]), ("IQ2_XS", &led), ("IQ4_XS", &led)] {
        let options = [&["--type", file_type], options].concat();
        m.quantize("two.gguf", &[&options[..], &["--overwrite"]].concat());
        let folder = fixture("convert/llama/model");
        let one = m.at("one.gguf");
        done(&[&["convert", text(&folder), "-o", text(&one), "--overwrite"], &options[..]].concat());
        assert_eq!(bytes(&one), bytes(&m.at("two.gguf")), "{file_type} from a folder");
        done(&[&["convert", text(&m.gguf), "-o", text(&one), "--overwrite"], &options[..]].concat());
        assert_eq!(bytes(&one), bytes(&m.at("two.gguf")), "{file_type} by convert");
    }
}

#[test]
fn kernels_and_threads_make_the_same_file() {
    let m = Model::new();
    let imatrix = fixture("quant/imatrix/llama.gguf");
    for options in [&["--type", "Q4_K_M"][..], &["--type", "IQ3_XXS", "--imatrix", text(&imatrix)]] {
        m.quantize("wide.gguf", &[options, &["--overwrite"]].concat());
        m.quantize("scalar.gguf", &[options, &["--overwrite", "--kernel", "scalar", "--threads", "1"]].concat());
        assert_eq!(bytes(&m.at("wide.gguf")), bytes(&m.at("scalar.gguf")));
    }
}

#[test]
fn options_choose_types_of_tensors() {
    let m = Model::new();
    let file = m.at("types.txt");
    fs::write(&file, "attn_k=q5_1\nblk.1.attn_q=iq4_nl").unwrap();
    m.quantize(
        "chosen.gguf",
        &[
            "--type",
            "Q4_K_M",
            "--tensor-type",
            r"blk\.0\.attn_v=q8_0",
            "--tensor-type-file",
            text(&file),
            "--output-tensor-type",
            "q5_k",
            "--token-embedding-type",
            "q3_k",
        ],
    );
    for (tensor, expected) in [
        ("blk.0.attn_v.weight", DType::Q8_0),
        ("blk.0.attn_k.weight", DType::Q5_1),
        ("blk.1.attn_q.weight", DType::IQ4_NL),
        ("output.weight", DType::Q5_K),
        ("token_embd.weight", DType::Q3_K),
        ("blk.0.attn_norm.weight", DType::F32),
        ("blk.0.ffn_gate.weight", DType::Q4_K),
    ] {
        assert_eq!(dtype(&m.at("chosen.gguf"), tensor), expected, "{tensor}");
    }
    m.quantize("pure.gguf", &["--type", "Q4_K_M", "--pure", "--leave-output-tensor", "--prune-layers", "1"]);
    let pure = GgufFile::open(&m.at("pure.gguf")).unwrap();
    assert_eq!(dtype(&m.at("pure.gguf"), "output.weight"), DType::F32);
    assert_eq!(dtype(&m.at("pure.gguf"), "blk.0.ffn_down.weight"), DType::Q4_K);
    assert_eq!(pure.metadata().u32("llama.block_count").unwrap(), 1);
    assert!(pure.tensors().iter().all(|t| !t.name.starts_with("blk.1.")));
}

#[test]
fn dimensions_of_one_are_left_out_as_ggml_does() {
    let m = Model::new();
    let (from, to) = (m.at("experts.gguf"), m.at("quantized.gguf"));
    done(&["convert", text(&fixture("convert/qwen2moe/model")), "-o", text(&from), "--type", "f32", "--quiet"]);
    done(&["quantize", text(&from), "-o", text(&to), "--type", "Q8_0", "--quiet"]);
    let gate = |path: &Path| {
        let file = GgufFile::open(path).unwrap();
        let place = file.tensors().iter().position(|t| t.name == "blk.1.ffn_gate_inp_shexp.weight").unwrap();
        (file.tensors()[place].shape.clone(), file.bytes(place).into_owned())
    };
    let ((before, values), (after, same)) = (gate(&from), gate(&to));
    assert_eq!((before, after), (vec![1, 64], vec![64]));
    assert_eq!(values, same);
}

#[test]
fn importance_is_used_where_it_is_wanted_and_written_down() {
    let m = Model::new();
    let (gguf, dat) = (fixture("quant/imatrix/llama.gguf"), fixture("quant/imatrix/llama.dat"));
    m.quantize("plain.gguf", &["--type", "Q4_K_S"]);
    m.quantize("led.gguf", &["--type", "Q4_K_S", "--imatrix", text(&gguf)]);
    m.quantize("none.gguf", &["--type", "Q4_K_S", "--imatrix", text(&gguf), "--exclude-weights", "blk"]);
    let tensors = |name: &str| {
        let file = GgufFile::open(&m.at(name)).unwrap();
        (0..file.tensors().len()).map(|i| file.bytes(i).into_owned()).collect::<Vec<_>>()
    };
    assert_ne!(tensors("plain.gguf"), tensors("led.gguf"));
    assert_eq!(tensors("plain.gguf"), tensors("none.gguf"));
    m.quantize("old.gguf", &["--type", "Q4_K_S", "--imatrix", text(&dat), "--include-weights", "attn"]);
    let keys = GgufFile::open(&m.at("old.gguf")).unwrap().metadata().clone();
    assert_eq!(keys.text("quantize.imatrix.file").unwrap(), text(&dat));
    assert_eq!(keys.u32("quantize.imatrix.entries_count").unwrap(), 8);
}

#[test]
fn a_recipe_can_be_looked_at_with_nothing_but_the_header() {
    let m = Model::new();
    let header = GgufFile::open(&m.gguf).unwrap().range(0).start;
    let header_only = m.at("header.gguf");
    fs::write(&header_only, &bytes(&m.gguf)[..header]).unwrap();
    let table = done(&["quantize", text(&header_only), "-o", "no.gguf", "--dry-run", "--type", "IQ2_XXS"]);
    assert!(table.contains("needs an importance matrix"), "{table}");
    let args = ["quantize", text(&header_only), "-o", "no.gguf", "--dry-run", "--type", "Q4_K_M", "--json"];
    let json: Value = serde_json::from_str(&done(&args)).unwrap();
    m.quantize("q.gguf", &["--type", "Q4_K_M"]);
    let written = GgufFile::open(&m.at("q.gguf")).unwrap();
    let planned = json["tensors"].as_array().unwrap();
    assert_eq!(planned.len(), written.tensors().len());
    for (i, (planned, info)) in planned.iter().zip(written.tensors()).enumerate() {
        assert_eq!(planned["name"], info.name.as_str());
        assert_eq!(planned["to"], info.dtype.name());
        assert_eq!(planned["bytes"], written.range(i).len() as u64);
    }
    let bits = json["bits_per_weight"].as_f64().unwrap();
    assert!((4.5..7.0).contains(&bits), "{bits}");
    let refused = refused_leaving(
        INPUT,
        m.dir.path(),
        &["quantize", text(&header_only), "-o", text(&m.at("x.gguf")), "--type", "Q4_K_M"],
    );
    assert!(refused.contains("until the file's end"), "{refused}");
}

#[test]
fn quantized_models_are_split_read_again_and_quantized_on_request() {
    let m = Model::new();
    m.quantize("parts.gguf", &["--type", "Q4_0", "--split-max-tensors", "8"]);
    let shard =
        fs::read_dir(m.dir.path()).unwrap().map(|e| e.unwrap().path()).find(|p| text(p).contains("parts-00001"));
    let shard = shard.unwrap();
    assert!(GgufModel::open(&shard).unwrap().shards().len() > 1);
    let whole = bytes(&shard);
    let header = GgufFile::open(&shard).unwrap().range(0).start;
    fs::write(&shard, &whole[..header]).unwrap();
    let dry = ["quantize", text(&shard), "-o", "no.gguf", "--type", "Q4_K_M", "--dry-run"];
    let refused = refused_leaving(INPUT, m.dir.path(), &dry);
    assert!(refused.contains("expected the header of a whole model, found the header of one shard"), "{refused}");
    fs::write(&shard, whole).unwrap();
    let target = m.at("again.gguf");
    let again = ["quantize", text(&shard), "-o", text(&target), "--type", "Q4_K_M"];
    let refused = refused_leaving(INPUT, m.dir.path(), &again);
    assert!(refused.contains("pass --allow-requantize"), "{refused}");
    done(&[&again[..], &["--allow-requantize"]].concat());
    assert_eq!(dtype(&target, "blk.0.ffn_gate.weight"), DType::Q4_K);
    done(&["convert", text(&target), "-o", text(&m.at("folder")), "--outtype", "f32"]);
    assert!(m.at("folder/model.safetensors").is_file());
}

#[test]
fn what_cannot_be_quantized_is_refused_in_one_line() {
    let m = Model::new();
    let imatrix = fixture("quant/imatrix/qwen2-odd.gguf");
    let cases: &[(i32, &[&str], &str)] = &[
        (USAGE, &[], "--type: expected a file type, like Q4_K_M, found none"),
        (USAGE, &["--type", "Q9_K"], "expected one of F32, F16"),
        (INPUT, &["--type", "IQ1_S"], "expected importance, as IQ"),
        (USAGE, &["--type", "Q4_K_M", "--tensor-type", "attn_q"], "--tensor-type"),
        (USAGE, &["--type", "Q4_K_M", "--tensor-type", "attn_x=q8_0"], "expected a part of a tensor's name"),
        (USAGE, &["--type", "Q4_K_M", "--pre", "gpt-2"], "--pre: expected none"),
        (INPUT, &["--type", "Q4_K_M", "--prune-layers", "0,1"], "prune"),
        (INPUT, &["--type", "Q4_K_M", "--imatrix", text(&m.gguf)], "imatrix"),
        (INPUT, &["--type", "Q4_K_M", "--imatrix", text(&imatrix)], "the importance matrix is another model's"),
    ];
    for (exit, options, expected) in cases {
        let line = m.refusal(*exit, options);
        assert!(line.contains(expected), "{options:?}: {line}");
    }
    let refused = refused_leaving(
        USAGE,
        m.dir.path(),
        &["quantize", text(&m.gguf), "-o", text(&m.at("folder")), "--type", "Q4_K_M"],
    );
    assert!(refused.contains("expected a name that ends in .gguf"), "{refused}");
    let target = m.at("x.gguf");
    for (input, options, expected) in [
        ("lora/plain", &[][..], "--type Q4_K_M: expected a model"),
        ("routing/llama-prompt/adapter", &[], "--type Q4_K_M: expected a model"),
        ("pytorch/plain.safetensors", &["--generic"], "--type: expected f32, f16, bf16, auto or source with --generic"),
    ] {
        let input = fixture(input);
        let args = [&["convert", text(&input), "-o", text(&target), "--type", "Q4_K_M"], options].concat();
        let refused = refused_leaving(if options.is_empty() { INPUT } else { USAGE }, m.dir.path(), &args);
        assert!(refused.contains(expected), "{refused}");
    }
    let convert = ["convert", text(&m.gguf), "-o", text(&target), "--type", "source", "--pure"];
    let refused = refused_leaving(USAGE, m.dir.path(), &convert);
    assert!(refused.contains("--pure: expected a --type that is a mixture"), "{refused}");
}

#[test]
fn a_nan_or_an_infinity_is_refused_by_the_tensors_name() {
    let m = Model::new();
    let file = GgufFile::open(&m.gguf).unwrap();
    let place = file.tensors().iter().position(|t| t.name == "blk.1.ffn_up.weight").unwrap();
    let start = file.range(place).start;
    for (bad, kind) in
        [(f32::NAN, "Q4_K_M"), (f32::INFINITY, "Q8_0"), (f32::NEG_INFINITY, "IQ4_NL"), (f32::NAN, "Q4_0")]
    {
        let mut damaged = bytes(&m.gguf);
        damaged[start + 400..start + 404].copy_from_slice(&bad.to_le_bytes());
        fs::write(m.at("bad.gguf"), damaged).unwrap();
        let target = m.at("out.gguf");
        let refused = refused_leaving(
            INPUT,
            m.dir.path(),
            &["quantize", text(&m.at("bad.gguf")), "-o", text(&target), "--type", kind],
        );
        assert!(refused.contains("tensor \"blk.1.ffn_up.weight\": expected finite numbers"), "{refused}");
    }
}
