//! The program's options about families: those of users, projectors, layers for multi-token prediction, joined tensors.

#[path = "common/cases.rs"]
mod cases;
#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};

use atombank::formats::gguf::GgufFile;
use atombank::source::Source;
use cases::{Case, cases};
use program::{atombank, done, refused, text};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The folder of a case's model.
fn model(name: &str) -> (TempDir, PathBuf) {
    let case: Case = cases().into_iter().find(|case| case.name == name).unwrap();
    let dir = case.model();
    let path = dir.path().join("model");
    (dir, path)
}

fn names(path: &Path) -> Vec<String> {
    GgufFile::open(path).unwrap().tensors().iter().map(|tensor| tensor.name.clone()).collect()
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(config.as_object_mut().unwrap());
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_projector_is_written_alone_or_beside_its_text_model() {
    let (dir, model) = model("gemma4-vl");
    let at = |name: &str| dir.path().join(name);
    let convert = |output: &Path, options: &[&str]| {
        done(&[&["convert", text(&model), "-o", text(output), "--type", "f32"], options].concat())
    };
    convert(&at("text.gguf"), &[]);
    convert(&at("alone.gguf"), &["--mmproj"]);
    let json = convert(&at("both.gguf"), &["--with-mmproj", text(&at("beside.gguf")), "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["mmproj"]["path"], text(&at("beside.gguf")));
    assert_eq!(json["path"], text(&at("both.gguf")));
    for (one, other) in [("text.gguf", "both.gguf"), ("alone.gguf", "beside.gguf")] {
        assert!(fs::read(at(one)).unwrap() == fs::read(at(other)).unwrap(), "{other}");
    }
    assert!(names(&at("alone.gguf")).iter().all(|name| !name.starts_with("blk.")));
    // Never over the text model.
    let both = at("both.gguf");
    let same = ["convert", text(&model), "-o", text(&both), "--with-mmproj", text(&both), "--overwrite"];
    let line = refused(2, &same);
    assert!(line.contains("--with-mmproj: expected a name of its own that ends in .gguf"), "{line}");
    let line = refused(1, &["convert", text(&model), "-o", text(&at("new.gguf")), "--with-mmproj", text(&both)]);
    assert!(line.contains("already exists") && !at("new.gguf").exists(), "{line}");
    // Mixtures are for text models.
    let (mixed, q) = (at("mixed.gguf"), at("q.gguf"));
    let options = ["--type", "Q4_K_M", "--with-mmproj", text(&mixed), "--dry-run", "--json"];
    let out = done(&[&["convert", text(&model), "-o", text(&q)], &options[..]].concat());
    let json: Value = serde_json::from_str(&out).unwrap();
    assert!(json["mmproj"]["tensors"].as_array().unwrap().iter().all(|tensor| tensor["dtype"] != "Q4_K"));
    assert!(!q.exists() && !mixed.exists());
}

#[test]
fn what_a_model_has_not_is_refused_in_one_line() {
    let (dir, model) = model("qwen3-embedding");
    let at = |name: &str| dir.path().join(name);
    let out = at("out.gguf");
    let refuse = |exit: i32, input: &Path, options: &[&str], expected: &str| {
        let line = refused(exit, &[&["convert", text(input), "-o", text(&out)], options].concat());
        assert!(line.contains(expected), "{line}");
        assert!(!out.exists());
    };
    refuse(1, &model, &["--mmproj"], "a model without vision or audio has no projector");
    refuse(1, &model, &["--with-mmproj", text(&at("p.gguf"))], "a model without vision or audio has no projector");
    refuse(1, &model, &["--fuse-gate-up-exps"], "fuse_gate_up_exps: expected layers with tensors to join, found none");
    // A GGUF is past all of this.
    done(&["convert", text(&model), "-o", text(&at("model.gguf"))]);
    for option in ["--mmproj", "--no-nextn", "--mtp", "--fuse-qkv", "--fuse-gate-up-exps"] {
        refuse(
            2,
            &at("model.gguf"),
            &[option],
            &format!("{option}: expected a model's folder as input, found another"),
        );
    }
    for option in ["--model-name", "--metadata", "--pre"] {
        refuse(2, &at("model.gguf"), &[option, "x"], &format!("{option}: expected a model's folder as input"));
    }
    refuse(2, &model, &["--base", text(&model)], "--base: expected a LoRA as input");
    refuse(2, &model, &["--shard-size", "1MB"], "--shard-size: expected a folder, found a GGUF");
    let dense = "--sentence-transformers-dense-modules";
    refuse(2, &model, &[dense], &format!("{dense}: expected a class whose GGUF has a place for them"));
    for name in ["q8_0", "tq1_0", "tq2_0"] {
        let line = refused(2, &["convert", text(&model), "-o", text(&at("folder")), "--type", name]);
        assert!(line.contains("or source for a Hugging Face folder"), "{line}");
    }
    // The option of convert_hf_to_gguf.py is about memory.
    let out = atombank(&["convert", text(&model), "-o", text(&at("plain.gguf")), "--no-nextn", "--no-lazy"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("--no-nextn changes nothing"));
    let wrong = at("wrong.gguf");
    let key = ["--override-key", "qwen3.attention.layer_norm_rms_epsilon=str:x"];
    done(&[&["convert", text(&at("model.gguf")), "-o", text(&wrong)], &key[..]].concat());
    let line = refused(1, &["convert", text(&wrong), "-o", text(&at("wrong"))]);
    assert!(line.contains("layer_norm_rms_epsilon\": expected a number"), "{line}");
    refuse(2, &model, &["--generic", "--fuse-qkv"], "--fuse-qkv: expected none with --generic, found both");
    edit_config(&model, |config| drop(config.insert("num_hidden_layers".into(), json!(7))));
    refuse(1, &model, &[], "expected [");
    edit_config(&model, |config| drop(config.insert("num_hidden_layers".into(), json!(1))));
    refuse(1, &model, &[], "expected only tensors that config.json asks for, found this one");
    edit_config(&model, |config| drop(config.insert("architectures".into(), json!(["Qwen3ForCausalLMX"]))));
    refuse(1, &model, &[], "the nearest with a family is Qwen3ForCausalLM");
    refuse(1, &model, &[], "atombank convert with --generic keeps names and files");
}

#[test]
fn joined_tensors_are_those_that_they_are_made_of() {
    let (dir, model) = model("qwen2moe");
    let at = |name: &str| dir.path().join(name);
    done(&["convert", text(&model), "-o", text(&at("plain.gguf")), "--type", "f32"]);
    let options = ["--fuse-qkv", "--fuse-gate-up-exps"];
    done(&[&["convert", text(&model), "-o", text(&at("fused.gguf")), "--type", "f32"], &options[..]].concat());
    let (plain, fused) = (GgufFile::open(&at("plain.gguf")).unwrap(), GgufFile::open(&at("fused.gguf")).unwrap());
    let bytes = |file: &GgufFile, name: &str| {
        let place = file.tensors().iter().position(|tensor| tensor.name == name).unwrap_or_else(|| panic!("{name}"));
        (file.tensors()[place].shape.clone(), file.bytes(place).to_vec())
    };
    for end in ["weight", "bias"] {
        let parts = ["q", "k", "v"].map(|part| bytes(&plain, &format!("blk.1.attn_{part}.{end}")).1);
        assert!(bytes(&fused, &format!("blk.1.attn_qkv.{end}")).1 == parts.concat(), "{end}");
    }
    // Within each expert, the gate comes first.
    let (shape, gate) = bytes(&plain, "blk.1.ffn_gate_exps.weight");
    let (_, up) = bytes(&plain, "blk.1.ffn_up_exps.weight");
    let (joined_shape, joined) = bytes(&fused, "blk.1.ffn_gate_up_exps.weight");
    assert_eq!(joined_shape, [shape[0], 2 * shape[1], shape[2]]);
    let each = gate.len() / shape[0];
    let expected: Vec<u8> = gate.chunks(each).zip(up.chunks(each)).flat_map(|(gate, up)| [gate, up].concat()).collect();
    assert!(joined == expected);
    let left =
        |file: &GgufFile| file.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum::<usize>();
    assert_eq!(left(&plain), left(&fused), "nothing is left out");
}

#[test]
fn layers_for_more_tokens_are_left_out_or_written_alone() {
    let (dir, model) = model("qwen35");
    let at = |name: &str| dir.path().join(name);
    let convert = |name: &str, options: &[&str]| {
        done(&[&["convert", text(&model), "-o", text(&at(name)), "--type", "f32"], options].concat());
        names(&at(name))
    };
    let (whole, without, alone) =
        (convert("whole.gguf", &[]), convert("without.gguf", &["--no-nextn"]), convert("alone.gguf", &["--mtp"]));
    let is_next = |name: &&String| name.contains(".nextn.");
    assert!(whole.iter().any(|name| is_next(&name)) && !without.iter().any(|name| is_next(&name)));
    assert!(alone.iter().any(|name| is_next(&name)) && alone.len() < whole.len());
    assert!(without.iter().all(|name| whole.contains(name)) && alone.iter().all(|name| whole.contains(name)));
    assert_eq!(convert("alias.gguf", &["--no-mtp"]), without);
}

#[test]
fn a_big_endian_gguf_has_the_same_content() {
    let (dir, model) = model("qwen3-embedding");
    let at = |name: &str| dir.path().join(name);
    for (name, options) in [("little.gguf", &[][..]), ("big.gguf", &["--bigendian"])] {
        done(&[&["convert", text(&model), "-o", text(&at(name)), "--type", "q8_0"], options].concat());
    }
    let (little, big) = (GgufFile::open(&at("little.gguf")).unwrap(), GgufFile::open(&at("big.gguf")).unwrap());
    assert!(big.big_endian() && !little.big_endian());
    assert_eq!((big.metadata(), big.tensors()), (little.metadata(), little.tensors()));
    assert!((0..big.tensors().len()).all(|place| big.bytes(place) == little.bytes(place)));
    let line = refused(2, &["convert", text(&model), "-o", text(&at("folder")), "--bigendian"]);
    assert!(line.contains("--bigendian: expected a GGUF, found another output"), "{line}");
}

/// The second family that docs/families.md teaches by.
#[test]
fn the_documented_family_converts_in_both_directions() {
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/families.md")).unwrap();
    let family = docs.split("```family\n").nth(2).unwrap().split("```").next().unwrap();
    let (dir, model) = model("qwen3-embedding");
    let at = |name: &str| dir.path().join(name);
    fs::write(at("example.family"), family).unwrap();
    let vocab = serde_json::from_slice::<Value>(&fs::read(model.join("config.json")).unwrap()).unwrap()["vocab_size"]
        .as_u64()
        .unwrap();
    let config = json!({
        "architectures": ["ExampleMlaForCausalLM"], "model_type": "example_mla", "vocab_size": vocab, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "scoring_func": "sigmoid",
    });
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab as usize, 32]),
        ("model.norm.weight".to_owned(), vec![32]),
        ("lm_head.weight".to_owned(), vec![vocab as usize, 32]),
    ];
    for l in 0..2 {
        let mut add =
            |name: String, shape: &[usize]| tensors.push((format!("model.layers.{l}.{name}"), shape.to_vec()));
        add("input_layernorm.weight".into(), &[32]);
        add("post_attention_layernorm.weight".into(), &[32]);
        add("self_attn.q_proj.weight".into(), &[24, 32]);
        add("self_attn.kv_a_proj_with_mqa.weight".into(), &[20, 32]);
        add("self_attn.kv_a_layernorm.weight".into(), &[16]);
        add("self_attn.kv_b_proj.weight".into(), &[32, 16]);
        add("self_attn.o_proj.weight".into(), &[32, 16]);
        let parts = [("gate_proj", true), ("up_proj", true), ("down_proj", false)];
        for (part, is_first) in parts {
            let shape = |width: usize| if is_first { [width, 32] } else { [32, width] };
            match l {
                0 => add(format!("mlp.{part}.weight"), &shape(64)),
                _ => (0..4).for_each(|e| add(format!("mlp.experts.{e}.{part}.weight"), &shape(16))),
            }
        }
        if l == 1 {
            add("mlp.gate.weight".into(), &[4, 32]);
            add("mlp.gate.e_score_correction_bias".into(), &[4]);
        }
    }
    let described: Vec<Value> = (tensors.iter())
        .map(|(name, shape)| json!({"name": name, "dtype": "F32", "shape": shape, "values": "random"}))
        .collect();
    fs::write(model.join("model.safetensors"), cases::safetensors_of(&json!(described))).unwrap();
    let family = at("example.family");
    let options = ["--family", text(&family), "--type", "f32"];
    let convert = |from: &Path, to: &Path| {
        done(&[&["convert", text(from), "-o", text(to)], &options[..]].concat());
    };
    convert(&model, &at("model.gguf"));
    convert(&at("model.gguf"), &at("back"));
    let values = |folder: &Path| -> Vec<(String, Vec<f32>)> {
        let folder = atombank::checkpoint::Checkpoint::open(folder).unwrap();
        let mut all: Vec<_> =
            folder.weights().tensors.iter().map(|tensor| (tensor.name.clone(), tensor.read().unwrap())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let (original, back) = (values(&model), values(&at("back")));
    for ((name, values), (back_name, back_values)) in original.iter().zip(&back) {
        assert!(name == back_name && values == back_values, "{name}, {back_name}");
    }
    assert_eq!(original.len(), back.len());
    convert(&at("back"), &at("again.gguf"));
    assert_eq!(
        GgufFile::open(&at("model.gguf")).unwrap().metadata().u32("deepseek2.expert_gating_func").unwrap(),
        GgufFile::open(&at("again.gguf")).unwrap().metadata().u32("deepseek2.expert_gating_func").unwrap(),
    );
}

#[test]
fn families_are_listed_shown_and_checked() {
    let listed = done(&["families"]);
    assert!(listed.contains("qwen3moe") && listed.contains("mmproj-gemma3"), "{listed}");
    let json: Value = serde_json::from_str(&done(&["families", "--json"])).unwrap();
    let all = json.as_array().unwrap();
    let of = |name: &str| all.iter().find(|family| family["name"] == name).unwrap();
    assert_eq!(of("helium")["classes"], json!(["HeliumForCausalLM", "HeliumModel"]));
    assert_eq!(of("mmproj-gemma3")["projector"], true);
    let shown = done(&["families", "show", "helium"]);
    assert!(shown.contains("class HeliumForCausalLM HeliumModel\n"));
    let line = refused(2, &["families", "show", "heliun"]);
    assert!(line.contains("did you mean helium?"), "{line}");
    // What is shown can be taken back, and changed.
    let (dir, model) = model("qwen3-embedding");
    let at = |name: &str| dir.path().join(name);
    fs::write(at("helium.family"), shown).unwrap();
    assert!(done(&["families", "check", text(&at("helium.family"))]).contains("HeliumForCausalLM"));
    fs::write(at("new.family"), "from qwen3\nclass NewForCausalLM\nmodel_type new\n").unwrap();
    edit_config(&model, |config| drop(config.insert("architectures".into(), json!(["NewForCausalLM"]))));
    let checked = done(&["families", "check", text(&at("new.family")), text(&model)]);
    assert!(checked.contains("blk.0.attn_q.weight [") && checked.contains("self_attn.q_proj.weight"), "{checked}");
    let out = at("new.gguf");
    let line = refused(1, &["convert", text(&model), "-o", text(&out)]);
    assert!(line.contains("NewForCausalLM") && !out.exists(), "{line}");
    done(&["convert", text(&model), "-o", text(&out), "--family", text(&at("new.family"))]);
    assert_eq!(GgufFile::open(&out).unwrap().metadata().text("general.architecture").unwrap(), "qwen3");
    fs::write(at("new.family"), "from qwen3\nclass NewForCausalLM\nkey u32 a = (1\n").unwrap();
    let failed = atombank(&["convert", text(&model), "-o", text(&at("x.gguf")), "--family", text(&at("new.family"))]);
    let line = String::from_utf8(failed.stderr).unwrap();
    assert!(line.contains("new.family: line 3, column 15: expected") && line.lines().count() == 1, "{line}");
    assert_eq!((failed.status.code(), at("x.gguf").exists()), (Some(1), false));
}

/// Formulas that would take all time or memory are mistakes, too.
#[test]
fn formulas_without_end_are_refused() {
    let (dir, model) = model("qwen3-embedding");
    let path = dir.path().join("hostile.family");
    let doubling: String = (0..28).map(|i| format!("let x{i} = x{} + x{}\n", i + 1, i + 1)).collect();
    for (statements, expected) in [
        (format!("{doubling}let x28 = 1\nkey u32 a = x0\n"), "a value in at most 2000000 steps"),
        ("key u32 a = len([[j for j in 60000] for i in 60000])\n".to_owned(), "a value in at most 2000000 steps"),
        ("key u32 a = (-9223372036854775807 - 1) // -1\n".to_owned(), "numbers that can be computed"),
        ("key u32 a = (-9223372036854775807 - 1) % -1\n".to_owned(), "numbers that can be computed"),
        (
            "tensor o blk.{l}.attn_output.weight = model.layers.{l}.self_attn.o_proj.weight [hidden, heads * head]\n    \
             | pad 0 1000000000000\n"
                .to_owned(),
            "a dimension 0 nearer to 1000000000000, to be padded",
        ),
        ("let a = b\nlet b = a\nkey u32 c = a\n".to_owned(), "formulas that don't use each other, found a, b"),
        ("key u32 c = hidden_size // 0\n".to_owned(), "asked for by `key c` of "),
        (
            "tensor o blk.{l}.attn_output.weight = model.layers.{l}.self_attn.o_proj.weight [hidden // 0, 1]\n".to_owned(),
            "asked for by `tensor blk.{l}.attn_output.weight` of ",
        ),
    ] {
        fs::write(&path, format!("from qwen3\nclass Qwen3Model Qwen3ForCausalLM\nmodel_type qwen3\n{statements}")).unwrap();
        let line = refused(1, &["families", "check", text(&path), text(&model)]);
        assert!(line.contains(expected), "{statements}: {line}");
    }
}

#[test]
fn values_with_which_no_model_computes_are_refused() {
    let (dir, model) = model("qwen3-embedding");
    let original = fs::read(model.join("config.json")).unwrap();
    let out = dir.path().join("out.gguf");
    for (field, value, expected) in [
        ("rms_norm_eps", json!(null), "expected a number, found null"),
        ("rms_norm_eps", json!(1e300), "expected a number that 32 bits can hold, found 1e+300"),
        ("rms_norm_eps", json!(-1), "expected a number from 0 to 1, found -1"),
        ("max_position_embeddings", json!(0), "expected a count from 1 on, found 0"),
        ("max_position_embeddings", json!(true), "expected a number, found true"),
        ("max_position_embeddings", json!([64]), "expected a number, found [64]"),
        ("rope_theta", json!(0), "expected a number above 0, found 0"),
        ("rope_theta", json!(-5.0), "expected a number above 0, found -5"),
    ] {
        fs::write(model.join("config.json"), &original).unwrap();
        edit_config(&model, |config| {
            if field == "rope_theta" {
                config.remove("rope_parameters");
            }
            config.insert(field.to_owned(), value.clone());
        });
        let line = refused(1, &["convert", text(&model), "-o", text(&out)]);
        assert!(line.contains(&format!("config.json: {field}: {expected}")), "{line}");
        assert!(!out.exists());
    }
}
