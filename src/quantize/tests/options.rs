//! Tests of what each option changes on a model of two blocks, and of what is refused.

use super::*;

/// Tensors with rows of 512 and 1024, not in file order.
fn small(output: bool) -> Vec<TensorInfo> {
    let f32 = |name: &str, shape: &[usize]| tensor(name, DType::F32, shape);
    let mut tensors = vec![f32("token_embd.weight", &[64, 512]), f32("output_norm.weight", &[512])];
    for block in [1, 0] {
        for (name, shape) in [
            ("attn_norm", &[512][..]),
            ("attn_v", &[128, 512]),
            ("attn_q", &[512, 512]),
            ("ffn_up", &[1024, 512]),
            ("ffn_down", &[512, 1024]),
        ] {
            tensors.push(f32(&format!("blk.{block}.{name}.weight"), shape));
        }
    }
    if output {
        tensors.push(f32("output.weight", &[64, 512]));
    }
    tensors
}

fn recipe(file_type: FileType, change: impl FnOnce(&mut Recipe)) -> Recipe {
    let mut recipe = Recipe::from(file_type);
    change(&mut recipe);
    recipe
}

fn rules(arguments: &[&str]) -> Vec<TensorTypeRule> {
    arguments.iter().map(|argument| TensorTypeRule::parse(argument).unwrap()).collect()
}

/// The types that differ from `usual`, by name, in the file's order.
fn types_of(recipe: &Recipe, tensors: &[TensorInfo], usual: DType) -> Vec<String> {
    let chosen = recipe.types(&metadata("llama", 2, 8, 4, 0), tensors, None).unwrap();
    let in_order = file_order(tensors).into_iter().filter_map(|place| chosen[place].clone());
    let other = in_order.filter(|chosen| chosen.dtype != usual && !chosen.name.contains("_norm"));
    other.map(|chosen| format!("{} {}", chosen.name.trim_end_matches(".weight"), chosen.dtype)).collect()
}

fn refusal(recipe: &Recipe, tensors: &[TensorInfo]) -> String {
    recipe.types(&metadata("llama", 2, 8, 4, 0), tensors, None).unwrap_err().to_string()
}

#[test]
fn a_mixture_and_the_same_without() {
    let mixed = Recipe::from(FileType::Q4_K_M);
    let expected = ["output Q6_K", "blk.1.attn_v Q6_K", "blk.1.ffn_down Q6_K"];
    assert_eq!(types_of(&mixed, &small(true), DType::Q4_K), expected);
    let pure = recipe(FileType::Q4_K_M, |recipe| recipe.pure = true);
    assert_eq!(types_of(&pure, &small(true), DType::Q4_K), [""; 0]);
}

#[test]
fn tied_embeddings_are_the_output() {
    let tied = Recipe::from(FileType::Q4_K_S);
    let values = ["blk.0.attn_v Q5_K", "blk.1.attn_v Q5_K"];
    assert_eq!(types_of(&tied, &small(false), DType::Q4_K), [&["token_embd Q6_K"][..], &values].concat());
    let output = recipe(FileType::Q4_K_S, |recipe| recipe.output_tensor_type = Some(DType::Q8_0));
    assert_eq!(types_of(&output, &small(false), DType::Q4_K), [&["token_embd Q8_0"][..], &values].concat());
    let both = recipe(FileType::Q4_K_S, |recipe| {
        recipe.output_tensor_type = Some(DType::F16);
        recipe.token_embedding_type = Some(DType::Q8_0);
    });
    let expected = [&["output F16", "token_embd Q8_0"][..], &values].concat();
    assert_eq!(types_of(&both, &small(true), DType::Q4_K), expected);
}

#[test]
fn output_and_embeddings_have_options_in_files_of_plain_numbers_too() {
    let recipe = recipe(FileType::F16, |recipe| {
        recipe.output_tensor_type = Some(DType::Q8_0);
        recipe.token_embedding_type = Some(DType::BF16);
    });
    assert_eq!(types_of(&recipe, &small(true), DType::F16), ["output Q8_0", "token_embd BF16"]);
}

#[test]
fn the_first_rule_that_is_for_a_tensor_counts() {
    let recipe = recipe(FileType::Q4_0, |recipe| {
        recipe.tensor_types = rules(&[r"blk\.1\.ffn=q5_1", "ffn_(up|down)=q8_0", "_norm=q8_0"]);
    });
    let expected =
        ["output Q6_K", "blk.0.ffn_down Q8_0", "blk.0.ffn_up Q8_0", "blk.1.ffn_down Q5_1", "blk.1.ffn_up Q5_1"];
    assert_eq!(types_of(&recipe, &small(true), DType::Q4_0), expected, "vectors stay as they are");
}

#[test]
fn the_table_beside_the_embeddings_follows_them_unless_named() {
    let mut tensors = small(true);
    tensors.push(tensor("per_layer_token_embd.weight", DType::F32, &[64, 512]));
    let mut recipe = recipe(FileType::Q8_0, |recipe| recipe.token_embedding_type = Some(DType::Q4_0));
    assert_eq!(types_of(&recipe, &tensors, DType::Q8_0), ["per_layer_token_embd Q4_0", "token_embd Q4_0"]);
    recipe.tensor_types = rules(&["token_embd=q5_0"]);
    assert_eq!(types_of(&recipe, &tensors, DType::Q8_0), ["per_layer_token_embd Q5_0", "token_embd Q4_0"]);
}

#[test]
fn a_rule_keeps_a_tensor_out_of_the_count() {
    // A tensor with a rule isn't counted as one of the mixture's value tensors, but still counts in
    // their total.
    let mut tensors = small(true);
    tensors.extend((2..8).map(|block| tensor(format!("blk.{block}.attn_v.weight"), DType::F32, &[128, 512])));
    let values = |recipe: &Recipe| {
        let types = types_of(recipe, &tensors, DType::Q4_K);
        types.into_iter().filter(|line| line.contains("attn_v")).map(|line| line[4..5].to_owned()).collect::<String>()
    };
    assert_eq!(values(&Recipe::from(FileType::Q4_K_M)), "0367");
    let ruled = recipe(FileType::Q4_K_M, |recipe| recipe.tensor_types = rules(&[r"blk\.0\.attn_v=q4_K"]));
    assert_eq!(values(&ruled), "147");
}

#[test]
fn rows_that_do_not_divide_say_what_they_should_have_been() {
    let tensors = [
        tensor("blk.0.ffn_down.weight", DType::F32, &[64, 416]),
        tensor("blk.0.ffn_up.weight", DType::F32, &[64, 33]),
        tensor("output.weight", DType::F32, &[64, 416]),
    ];
    let model = metadata("llama", 1, 8, 4, 0);
    let chosen = Recipe::from(FileType::Q4_K_M).types(&model, &tensors, None).unwrap();
    let told: Vec<_> = chosen.into_iter().flatten().map(|chosen| (chosen.dtype, chosen.instead_of)).collect();
    let expected = [(DType::Q8_0, Some(DType::Q6_K)), (DType::F16, Some(DType::Q4_K)), (DType::Q8_0, None)];
    assert_eq!(told, expected);
}

#[test]
fn pruned_layers_leave_no_trace_but_the_count() {
    let pruned = recipe(FileType::Q4_K_M, |recipe| {
        recipe.prune_layers = parse_layers("0").unwrap();
        recipe.tensor_types = rules(&[r"blk\.0\.attn_q=q8_0"]);
    });
    let tensors = small(true);
    let expected = ["output Q6_K", "blk.0.attn_q Q8_0", "blk.0.attn_v Q6_K"];
    assert_eq!(types_of(&pruned, &tensors, DType::Q4_K), expected);
    let model = metadata("llama", 2, 8, 4, 0);
    let chosen = pruned.types(&model, &tensors, None).unwrap();
    for (tensor, chosen) in tensors.iter().zip(&chosen) {
        assert_eq!(chosen.is_none(), tensor.name.starts_with("blk.0."), "{}", tensor.name);
    }
    let copied = recipe(FileType::COPY, |recipe| recipe.prune_layers = parse_layers("1").unwrap());
    assert_eq!(types_of(&copied, &tensors, DType::F32), [""; 0]);
}

#[test]
fn keys_come_last_in_llama_quantizes_order() {
    let mut model = metadata("llama", 2, 8, 4, 0);
    let written = |recipe: Recipe, model: &Metadata| {
        let mut model = model.clone();
        recipe.write_type(&mut model);
        recipe.write_block_count(&mut model).unwrap();
        model.iter().skip(4).map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>()
    };
    let version = "general.quantization_version uint32 2";
    let experts = "llama.expert_count uint32 0";
    let quantized = "general.file_type uint32 15";
    assert_eq!(written(Recipe::from(FileType::COPY), &model), [experts, version]);
    model.insert("general.file_type", 1u32);
    model.insert("other", 3u32);
    let other = "other uint32 3";
    let copied = [experts, other, version, "general.file_type uint32 1"];
    assert_eq!(written(Recipe::from(FileType::COPY), &model), copied);
    assert_eq!(written(Recipe::from(FileType::Q4_K_M), &model), [experts, other, version, quantized]);
    let pruned = recipe(FileType::Q4_K_M, |recipe| recipe.prune_layers = parse_layers("1").unwrap());
    let expected = [experts, other, version, quantized, "llama.block_count uint32 1"];
    assert_eq!(written(pruned, &model)[..], expected[1..], "the first four keys are one less");
}

#[test]
fn quantized_tensors_are_quantized_again_only_by_permission() {
    let mut tensors = small(true);
    tensors[0].dtype = DType::Q8_0;
    let mut again = Recipe::from(FileType::Q4_0);
    let message = refusal(&again, &tensors);
    assert!(message.starts_with("m.gguf: tensor \"token_embd.weight\": expected F32, F16 or BF16 to"), "{message}");
    assert!(message.contains("Q4_0 of, found Q8_0; ") && message.contains("allow_requantize"), "{message}");
    again.allow_requantize = true;
    assert_eq!(types_of(&again, &tensors, DType::Q4_0), ["output Q6_K"]);
    let same = Recipe::from(FileType::Q8_0);
    assert_eq!(types_of(&same, &tensors, DType::Q8_0), [""; 0], "nothing is done to it");
    tensors[0].dtype = DType::I32;
    let message = refusal(&again, &tensors);
    assert!(message.contains("token_embd.weight\": expected a type to make Q4_0 of, found I32"), "{message}");
}

#[test]
fn small_types_ask_for_importance() {
    let tensors = small(true);
    let model = metadata("llama", 2, 8, 4, 0);
    let all_but_one = |name: &str| name != "blk.0.attn_q.weight";
    let blocks = |name: &str| name.starts_with("blk.");
    let types = |file_type, importance| Recipe::from(file_type).types(&model, &tensors, importance);
    for file_type in [
        FileType::IQ1_S,
        FileType::IQ1_M,
        FileType::IQ2_XXS,
        FileType::IQ2_XS,
        FileType::IQ2_S,
        FileType::IQ2_M,
        FileType::IQ3_XXS,
        FileType::IQ3_XS,
        FileType::Q2_K_S,
    ] {
        let message = types(file_type, None).unwrap_err().to_string();
        assert!(message.contains("expected importance, as "), "{file_type}: {message}");
        assert!(message.contains("found no imatrix file; "), "{file_type}: {message}");
        let message = types(file_type, Some(&all_but_one)).unwrap_err().to_string();
        assert!(message.contains("blk.0.attn_q.weight\": expected importance, as "), "{file_type}: {message}");
        assert!(message.contains("found none for it in the imatrix file; "), "{file_type}: {message}");
        let chosen = types(file_type, Some(&blocks)).unwrap();
        assert!(chosen.iter().flatten().any(|chosen| chosen.needs_importance), "{file_type}");
        assert_eq!(Recipe::from(file_type).types_if_importance(&model, &tensors, true).unwrap(), chosen);
    }
    for file_type in [FileType::Q2_K, FileType::IQ3_S, FileType::IQ3_M, FileType::IQ4_XS, FileType::TQ1_0] {
        let chosen = types(file_type, None).unwrap();
        assert!(chosen.iter().flatten().all(|chosen| !chosen.needs_importance), "{file_type}");
    }
    let pure = recipe(FileType::IQ2_XS, |recipe| recipe.pure = true);
    let message = pure.types(&model, &tensors, Some(&blocks)).unwrap_err().to_string();
    assert!(message.contains("token_embd.weight\": expected importance, as IQ2_XS"), "{message}");
}

#[test]
fn importance_is_looked_up_by_the_name_before_pruning() {
    let pruned = recipe(FileType::IQ2_XS, |recipe| recipe.prune_layers = parse_layers("0").unwrap());
    let model = metadata("llama", 2, 8, 4, 0);
    assert!(pruned.types(&model, &small(true), Some(&|name| name.starts_with("blk.1."))).is_ok());
    assert!(pruned.types(&model, &small(true), Some(&|name| name.starts_with("blk.0."))).is_err());
}

#[test]
fn importance_changes_some_mixtures() {
    let (tensors, model) = (small(true), metadata("llama", 16, 8, 4, 0));
    for (file_type, name, without, with) in [
        (FileType::Q4_0, "blk.0.ffn_down.weight", DType::Q4_0, DType::Q4_1),
        (FileType::Q5_0, "blk.0.ffn_down.weight", DType::Q5_0, DType::Q5_1),
        (FileType::IQ4_XS, "blk.0.ffn_down.weight", DType::Q5_K, DType::IQ4_XS),
        (FileType::IQ3_XXS, "blk.0.ffn_down.weight", DType::Q4_K, DType::IQ3_XXS),
        (FileType::IQ3_XXS, "blk.0.attn_v.weight", DType::IQ3_S, DType::IQ3_XXS),
    ] {
        let place = tensors.iter().position(|tensor| tensor.name == name).unwrap();
        let [without_it, with_it] = [false, true].map(|importance| {
            let types = Recipe::from(file_type).types_if_importance(&model, &tensors, importance).unwrap();
            types[place].as_ref().unwrap().dtype
        });
        assert_eq!((without_it, with_it), (without, with), "{file_type} {name}");
    }
}

/// File types that aren't in the snapshots.
#[test]
fn the_smallest_blocks_have_larger_embeddings_and_output() {
    let types = |file_type, usual| types_of(&Recipe::from(file_type), &small(true), usual);
    assert_eq!(types(FileType::Q1_0, DType::Q1_0), ["output Q6_K"]);
    assert_eq!(types(FileType::Q2_0, DType::Q2_0), ["output Q6_K", "token_embd Q4_K"]);
}

/// Rules that no snapshot covers.
#[test]
fn falcon_and_models_of_eight_experts_have_rules_of_their_own() {
    let types = |architecture: &str, experts, file_type| {
        let model = metadata(architecture, 16, 8, 8, experts);
        let names = ["0.attn_v", "0.attn_k", "0.attn_output", "0.ffn_down", "1.ffn_down", "2.ffn_down"];
        let tensors = names.map(|name| tensor(format!("blk.{name}.weight"), DType::F32, &[256, 256])).into_iter();
        let tensors: Vec<_> = tensors.chain([tensor("output.weight", DType::F32, &[256, 256])]).collect();
        let chosen = Recipe::from(file_type).types_if_importance(&model, &tensors, false).unwrap();
        chosen.into_iter().flatten().map(|chosen| chosen.dtype.name()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(types("falcon", 0, FileType::Q3_K_L), "Q5_K Q3_K Q4_K Q4_K Q4_K Q4_K Q8_0");
    assert_eq!(types("falcon", 0, FileType::Q3_K_M), "Q5_K Q3_K Q3_K Q5_K Q4_K Q3_K Q8_0");
    assert_eq!(types("falcon", 0, FileType::Q4_K_M), "Q6_K Q4_K Q4_K Q6_K Q5_K Q4_K Q8_0");
    assert_eq!(types("falcon", 0, FileType::Q4_K_S), "Q5_K Q4_K Q4_K Q4_K Q4_K Q4_K Q8_0");
    assert_eq!(types("llama", 8, FileType::Q4_K_M), "Q8_0 Q8_0 Q5_K Q6_K Q6_K Q4_K Q6_K");
    assert_eq!(types("llama", 8, FileType::Q5_K_M), "Q8_0 Q8_0 Q5_K Q6_K Q6_K Q5_K Q6_K");
    assert_eq!(types("llama", 8, FileType::IQ2_S), "Q4_K Q4_K Q5_K IQ3_S IQ3_S IQ2_XS Q5_K");
    assert_eq!(types("llama", 8, FileType::IQ3_M), "Q8_0 Q8_0 Q5_K Q4_K Q4_K IQ3_S Q6_K");
    assert_eq!(types("llama", 8, FileType::Q2_K), "Q8_0 Q8_0 Q5_K Q3_K Q3_K Q3_K Q6_K");
}

/// More rules that no snapshot covers.
#[test]
fn new_architectures_have_rules_of_their_own() {
    let types = |architecture: &str, file_type, name: &str| {
        let tensors = [tensor(name, DType::F32, &[4, 256, 256]), tensor("output.weight", DType::F32, &[256, 256])];
        let model = metadata(architecture, 2, 8, 8, 4);
        let chosen = Recipe::from(file_type).types_if_importance(&model, &tensors, false).unwrap();
        chosen[0].as_ref().unwrap().dtype
    };
    for name in ["blk.0.attn_q_a.weight", "blk.0.attn_q_b.weight", "blk.1.nextn.eh_proj.weight"] {
        assert_eq!(types("glm5-next", FileType::Q2_K, name), DType::Q8_0);
        assert_eq!(types("glm4moe", FileType::Q2_K, name), DType::Q2_K);
        assert_eq!(types("glm5-next", FileType::BF16, name), DType::BF16);
    }
    assert_eq!(types("glm5-next", FileType::Q2_K, "blk.0.indexer.proj.weight"), DType::F32, "kept");
    let (experts, attention) = ("blk.0.ffn_up_exps.weight", "blk.0.attn_k_b.weight");
    assert_eq!(types("bailingmoe3", FileType::MXFP4_MOE, experts), DType::MXFP4);
    assert_eq!(types("bailingmoe3", FileType::MXFP4_MOE, attention), DType::Q8_0);
    assert_eq!(types("deepseek2", FileType::MXFP4_MOE, attention), DType::MXFP4);
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    type Change = fn(&mut Recipe);
    let cases: [(FileType, bool, Change, &str); 14] = [
        (FileType::COPY, true, |r| r.pure = true, "pure: expected none, found one, with file type COPY"),
        (FileType::COPY, true, |r| r.leave_output_tensor = true, "leave_output_tensor: expected none"),
        (FileType::COPY, true, |r| r.output_tensor_type = Some(DType::F16), "output_tensor_type: expected none"),
        (FileType::COPY, true, |r| r.token_embedding_type = Some(DType::F16), "token_embedding_type: expected none"),
        (FileType::COPY, true, |r| r.tensor_types = rules(&["a=f16"]), "tensor_type: expected none"),
        (FileType::BF16, true, |r| r.tensor_types = rules(&["a=f16"]), "with file type BF16, which has no exceptions"),
        (
            FileType::Q8_0,
            true,
            |r| (r.leave_output_tensor, r.output_tensor_type) = (true, Some(DType::F16)),
            "output_tensor_type: expected none, found one, with `leave_output_tensor`",
        ),
        (FileType::Q8_0, true, |r| r.output_tensor_type = Some(DType::Q8_K), "to, found Q8_K"),
        (FileType::Q8_0, true, |r| r.token_embedding_type = Some(DType::I64), "to, found I64"),
        (FileType::Q8_0, false, |r| r.leave_output_tensor = true, "leave_output_tensor: expected output.weight"),
        (
            FileType::F16,
            false,
            |r| r.output_tensor_type = Some(DType::Q8_0),
            "m.gguf: output_tensor_type: expected output.weight, or embeddings in its place, found none",
        ),
        (
            FileType::Q8_0,
            false,
            |r| (r.output_tensor_type, r.token_embedding_type) = (Some(DType::F16), Some(DType::F16)),
            "output_tensor_type: expected output.weight, or embeddings in its place, found none",
        ),
        (
            FileType::Q8_0,
            true,
            |r| r.tensor_types = rules(&["attn_q=f16", "attn_x=f16"]),
            "tensor_type: attn_x: expected a part of a tensor's name, found none like it",
        ),
        (
            FileType::Q8_0,
            true,
            |r| r.prune_layers = [7].into(),
            "m.gguf: prune_layers: expected layers below 2, found 7",
        ),
    ];
    for (file_type, output, change, expected) in cases {
        let message = refusal(&recipe(file_type, change), &small(output));
        assert!(message.contains(expected), "{message}");
    }
    let no_embeddings = &small(true)[1..];
    let recipe = recipe(FileType::Q8_0, |recipe| recipe.token_embedding_type = Some(DType::F16));
    let message = refusal(&recipe, no_embeddings);
    assert!(message.contains("token_embedding_type: expected token_embd.weight, found none"), "{message}");
}

#[test]
fn types_that_rows_cannot_have_are_refused() {
    let tensors = [tensor("output.weight", DType::F32, &[64, 96]), tensor("blk.0.a.weight", DType::F32, &[64, 96])];
    for option in [DType::Q4_K, DType::Q1_0] {
        let message = refusal(&recipe(FileType::Q8_0, |recipe| recipe.output_tensor_type = Some(option)), &tensors);
        assert!(message.contains("tensor \"output.weight\": expected rows that divide into blocks of "), "{message}");
        assert!(message.ends_with("found rows of 96"), "{message}");
    }
    let message = refusal(&Recipe::from(FileType::Q1_0), &tensors);
    assert!(message.contains("blk.0.a.weight\": expected rows that divide into blocks of 128, as Q1_0"), "{message}");
}

#[test]
fn left_output_keeps_its_type() {
    let left = recipe(FileType::Q4_0, |recipe| recipe.leave_output_tensor = true);
    assert_eq!(types_of(&left, &small(true), DType::Q4_0), ["output F32"]);
}

#[test]
fn models_that_rules_ask_too_much_of_are_refused() {
    let tensors = [tensor("v.blk.0.attn_v.weight", DType::F32, &[64, 256])];
    let mut clip = Metadata::new("mmproj.gguf");
    clip.insert("general.architecture", "clip");
    let types = |file_type, model: &Metadata, tensors: &[_]| {
        Recipe::from(file_type).types_if_importance(model, tensors, false).map(|types| types[0].clone().unwrap().dtype)
    };
    assert_eq!(types(FileType::Q4_K_M, &clip, &tensors).unwrap(), DType::Q6_K);
    let message = types(FileType::Q2_K, &clip, &tensors).unwrap_err().to_string();
    assert!(message.contains("expected a model whose heads are known, as Q2_K asks for them"), "{message}");

    let experts = metadata("llama", 2, 8, 8, 4);
    for name in ["ffn_down.weight", "mtp.0.ffn_up.weight", "blk.2.ffn_gate_exps.weight"] {
        let tensors = [tensor(name, DType::F32, &[64, 256])];
        let message = types(FileType::Q8_0, &experts, &tensors).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("begins with blk.N., N below 2"), "{message}");
    }

    let adapter = Metadata::new("lora.gguf");
    let message = types(FileType::Q8_0, &adapter, &tensors).unwrap_err().to_string();
    assert!(message.contains("general.architecture"), "{message}");
    assert_eq!(types(FileType::COPY, &adapter, &tensors).unwrap(), DType::F32);
}
