//! What families tell the user of layers for which GGUF has no key.

use std::path::Path;

use serde_json::{Value, json};

use crate::arch::params::Params;

/// The notes on a config of this class with 7 layers, or the refusal.
fn notes(class: &str, fields: Value) -> String {
    let mut config = json!({"architectures": [class], "num_hidden_layers": 7});
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let mut notes = Vec::new();
    match Params::read(Path::new("m"), config.as_object().unwrap(), &mut notes) {
        Ok(params) => assert!(params.is_some(), "{class} has no family"),
        Err(error) => notes.push(error.to_string()),
    }
    notes.join("\n")
}

/// The kinds of 7 layers: full attention where `is_full` says so, else a window.
fn types(is_full: fn(usize) -> bool) -> Value {
    let kind = |layer| if is_full(layer) { "full_attention" } else { "sliding_attention" };
    json!({"layer_types": (0..7).map(kind).collect::<Vec<_>>()})
}

#[test]
fn layers_with_other_windows_than_llama_cpp_gives_them_get_a_note() {
    type IsFull = fn(usize) -> bool;
    let classes: [(&str, IsFull); 5] = [
        ("Gemma2ForCausalLM", |l| l % 2 == 1),
        ("Gemma3ForCausalLM", |l| l % 6 == 5),
        ("Gemma3TextModel", |l| l % 6 == 5),
        ("Cohere2ForCausalLM", |l| l % 4 == 3),
        ("ModernBertModel", |l| l % 3 == 0),
    ];
    for (class, is_full) in classes {
        assert_eq!(notes(class, json!({})), "", "{class}");
        assert_eq!(notes(class, types(is_full)), "", "{class}");
        let note = notes(class, types(|l| l == 4));
        assert!(note.starts_with("llama.cpp gives every ") && !note.contains('\n'), "{class}: {note}");
    }
}

#[test]
fn a_gemma3_has_windows_by_its_pattern() {
    for every in ["sliding_window_pattern", "_sliding_window_pattern"] {
        assert_eq!(notes("Gemma3ForCausalLM", json!({every: 1})), "");
        assert_eq!(notes("Gemma3ForCausalLM", json!({every: 6})), "");
        assert!(notes("Gemma3ForCausalLM", json!({every: 3})).contains("every sixth layer"));
    }
    let short = json!({"sliding_window_pattern": 3, "max_position_embeddings": 16, "sliding_window": 16});
    assert_eq!(notes("Gemma3ForCausalLM", short), "");
    let mut contradiction = types(|_| false);
    contradiction["sliding_window_pattern"] = json!(1);
    assert!(notes("Gemma3ForCausalLM", contradiction).starts_with("llama.cpp gives no layer a window"));
}

#[test]
fn a_window_that_llama_cpp_does_not_compute_gets_a_note() {
    assert_eq!(notes("Dots1ForCausalLM", json!({})), "");
    assert_eq!(notes("Dots1ForCausalLM", types(|_| true)), "");
    assert!(notes("Dots1ForCausalLM", types(|l| l != 4)).contains("full attention"));
    assert!(notes("Dots1ForCausalLM", json!({"max_window_layers": 3})).contains("full attention"));
    assert_eq!(notes("Dots1ForCausalLM", json!({"max_window_layers": 3, "sliding_window": null})), "");
}

#[test]
fn layers_without_positions_get_a_note_where_llama_cpp_has_others() {
    let of = |layers: &[u32]| notes("SmolLM3ForCausalLM", json!({"no_rope_layers": layers}));
    assert_eq!(of(&[1, 1, 1, 0, 1, 1, 1]), "");
    assert!(of(&[1, 0, 1, 0, 1, 1, 1]).contains("every fourth layer"));
    assert!(of(&[1, 1, 1, 0]).contains("every fourth layer"));
}

#[test]
fn kinds_of_layers_that_no_one_knows_are_refused() {
    let kinds = json!({"layer_types": ["full_attention", "x", "y", "z", "x", "x", "x"]});
    assert!(notes("Gemma4ForCausalLM", kinds).contains("other kinds than full_attention and sliding_attention"));
}
