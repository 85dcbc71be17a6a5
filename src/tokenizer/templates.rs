//! Chat templates that llama.cpp has for models whose files have none.
//!
//! The texts are llama.cpp's `models/templates/*.jinja`, unchanged, under the MIT licence
//! (`src/tokenizer/templates/LICENSE.llama.cpp`).

/// RWKV's World models.
pub(super) const RWKV_WORLD: &str = include_str!("templates/rwkv-world.jinja");
/// MiniMax-Text-01 and MiniMax-M1.
pub(super) const MINIMAX_M1: &str = include_str!("templates/minimax-m1.jinja");
/// Kimi K3.
pub(super) const KIMI_K3: &str = include_str!("templates/kimi-k3.jinja");

/// Returns the template that family files know by `name`. `None` for an unknown name.
pub(crate) fn builtin(name: &str) -> Option<&'static str> {
    Some(match name {
        "rwkv-world" => RWKV_WORLD,
        "minimax-m1" => MINIMAX_M1,
        "kimi-k3" => KIMI_K3,
        "deepseek-v4" => include_str!("templates/deepseek-v4.jinja"),
        "deepseek-v4-flash-0731" => include_str!("templates/deepseek-v4-flash-0731.jinja"),
        // What a reranker of Qwen3 is asked, for `tokenizer.chat_template.rerank`. llama.cpp puts the texts in the
        // braces' place.
        "qwen3-rerank" => include_str!("templates/qwen3-rerank.txt"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_known_by_name() {
        let rerank = builtin("qwen3-rerank").unwrap();
        assert!(rerank.contains("{query}") && rerank.contains("{document}") && rerank.ends_with("</think>\n\n"));
        assert_eq!(builtin("kimi-k3"), Some(KIMI_K3));
        assert_eq!(builtin("gpt5"), None);
    }
}
