"""Small models of the decoder classes of transformers, and what transformers computes with them.

`CASES` says which. A case is a class with a config; `make` writes its folder: the model, the tokenizer, the prompt and
expected.safetensors with the prompt's ids, its logits and the ids of a greedy continuation.
"""
import copy
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

TOKENIZERS = Path("fixtures/families/tokenizers")
# Folders of TOKENIZERS. llama.cpp's converter wants tokens of their own of some classes, of others a vocabulary that
# was SentencePiece's, here with a token before every text; UNPREFIXED is that one without a space before it.
BPE, SENTENCEPIECE, GLM, GLM_MOE = "5e66dc70", "891cda6f", "57ce202a", "c36dfa7b"
UNPREFIXED = "unprefixed"
TOKENIZER_OF = {"Phi3ForCausalLM": SENTENCEPIECE, "NemotronForCausalLM": SENTENCEPIECE, "GemmaForCausalLM": UNPREFIXED,
                "Gemma2ForCausalLM": UNPREFIXED, "Ernie4_5ForCausalLM": UNPREFIXED, "GlmForCausalLM": GLM,
                "Glm4ForCausalLM": GLM, "Glm4MoeForCausalLM": GLM_MOE}
EXTRA = {BPE: {}, GLM: {"vocab_size": 323}, GLM_MOE: {"vocab_size": 323},
         **dict.fromkeys([SENTENCEPIECE, UNPREFIXED], {"vocab_size": 512, "bos_token_id": 1})}
TOKENS = 24                             # of the continuation
SEEDS = 200
PROMPT = ("def area(width, height):\n    return width * height  # the plain rectangle\n\n"
          "It's 12345 times as wide as naïve readers think; 你好, world!")


# --- the cases ------------------------------------------------------------------------------------------------------

USUAL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 320, "bos_token_id": 0,
         "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False, "initializer_range": 0.08}
GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "vocab_size": 320, "bos_token_id": 0,
       "eos_token_id": 2, "pad_token_id": None, "initializer_range": 0.08}
EPSILONS = ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"]
EPSILON = 2e-3                          # as large as that, it shows whether it is read
FULL, SLIDING = "full_attention", "sliding_attention"
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 32}
# Deepseek's: the same factors in numerator and denominator would cancel.
MSCALE = {**YARN, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.7}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_shared_experts": 2,
          "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0,
          "num_key_value_heads": 4}
GROUPS = {"n_group": 4, "topk_group": 2}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
ONE_SCALE = {"rope_parameters": {**MSCALE, "mscale": MSCALE["mscale_all_dim"]}}


def longrope(original, half):
    """A rotation of `half` frequencies with other factors for texts longer than `original` than for short ones."""
    return {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": original,
            "short_factor": [1.0 + 0.05 * i for i in range(half)], "long_factor": [1.5 + 0.7 * i for i in range(half)]}


def case(cls, base=USUAL, unsaid=None, refused=None, **fields):
    """A class with a config.

    unsaid: fields of the config as the case's GGUF has them, because there is no key for others, which `convert` notes;
    refused: what `convert` names where such a model has no GGUF at all.
    """
    tokenizer = TOKENIZER_OF.get(cls, BPE)
    return {"class": cls, "config": {**base, **EXTRA[tokenizer], **fields}, "tokenizer": tokenizer,
            "unsaid": unsaid or {}, "refused": refused}


CASES = {
    "llama": case("LlamaForCausalLM"),
    "llama-biases-tied": case("LlamaForCausalLM", num_key_value_heads=4, attention_bias=True, mlp_bias=True,
                              tie_word_embeddings=True),
    "llama-linear": case("LlamaForCausalLM", rope_parameters=LINEAR),
    "llama-llama3": case("LlamaForCausalLM", rope_parameters=LLAMA3, head_dim=32),
    "llama-yarn": case("LlamaForCausalLM", rope_parameters=YARN),
    "llama-gelu": case("LlamaForCausalLM", hidden_act="gelu", head_dim=24, num_key_value_heads=1,
                       refused="hidden_act"),
    "mistral": case("MistralForCausalLM", sliding_window=None, head_dim=32),
    "mistral-window": case("MistralForCausalLM", sliding_window=9, unsaid={"sliding_window": None}),
    "mixtral": case("MixtralForCausalLM", num_local_experts=6, num_experts_per_tok=2),
    "mixtral-window": case("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=3, sliding_window=9,
                           head_dim=32, num_key_value_heads=4, unsaid={"sliding_window": None}),
    "qwen2": case("Qwen2ForCausalLM"),
    "qwen2-window": case("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=9, max_window_layers=1,
                         tie_word_embeddings=True, unsaid={"use_sliding_window": False}),
    "qwen2-layer-types": case("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=5,
                              layer_types=[SLIDING, FULL, SLIDING],
                              unsaid={"use_sliding_window": False, "layer_types": [FULL] * 3}),
    "qwen2-yarn": case("Qwen2ForCausalLM", rope_parameters={**YARN, "rope_theta": 1000000.0}),
    "qwen2moe": case("Qwen2MoeForCausalLM", **EXPERTS, shared_expert_intermediate_size=80),
    "qwen2moe-norm-some": case("Qwen2MoeForCausalLM", **EXPERTS, shared_expert_intermediate_size=40,
                               num_hidden_layers=5, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[1],
                               num_key_value_heads=4, refused="decoder_sparse_step"),
    "qwen2moe-window": case("Qwen2MoeForCausalLM", **EXPERTS, shared_expert_intermediate_size=40, qkv_bias=False,
                            use_sliding_window=True, sliding_window=9, layer_types=[SLIDING, FULL, SLIDING],
                            unsaid={"use_sliding_window": False, "layer_types": [FULL] * 3}),
    "qwen3": case("Qwen3ForCausalLM", head_dim=32),
    "qwen3-window-biases": case("Qwen3ForCausalLM", head_dim=16, attention_bias=True, use_sliding_window=True,
                                sliding_window=9, max_window_layers=1, tie_word_embeddings=True,
                                unsaid={"use_sliding_window": False}),
    "qwen3moe": case("Qwen3MoeForCausalLM", **EXPERTS, head_dim=32, unsaid={"norm_topk_prob": True}),
    "qwen3moe-norm-some": case("Qwen3MoeForCausalLM", **EXPERTS, head_dim=16, num_hidden_layers=5, norm_topk_prob=True,
                               decoder_sparse_step=2, mlp_only_layers=[1], refused="decoder_sparse_step"),
    "qwen3moe-window": case("Qwen3MoeForCausalLM", **EXPERTS, head_dim=16, norm_topk_prob=True, attention_bias=True,
                            use_sliding_window=True, sliding_window=9, unsaid={"use_sliding_window": False}),
    "gemma": case("GemmaForCausalLM", head_dim=32, num_key_value_heads=1, tie_word_embeddings=True),
    "gemma-biases": case("GemmaForCausalLM", head_dim=16, num_key_value_heads=4, attention_bias=True,
                         tie_word_embeddings=True, refused="attention_bias"),
    "gemma2": case("Gemma2ForCausalLM", head_dim=32, num_hidden_layers=4, query_pre_attn_scalar=24, sliding_window=9,
                   attn_logit_softcapping=2.0, final_logit_softcapping=4.0, tie_word_embeddings=True,
                   unsaid={"query_pre_attn_scalar": 32}),
    "gemma2-uncapped": case("Gemma2ForCausalLM", head_dim=16, query_pre_attn_scalar=16, sliding_window=9,
                            attn_logit_softcapping=None, final_logit_softcapping=None, tie_word_embeddings=True,
                            unsaid={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    "gemma3": case("Gemma3ForCausalLM", head_dim=32, num_hidden_layers=7, query_pre_attn_scalar=24, sliding_window=9,
                   tie_word_embeddings=True, unsaid={"query_pre_attn_scalar": 32},
                   rope_parameters={FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                                    SLIDING: {"rope_type": "default", "rope_theta": 10000.0}}),
    "gemma3-odd-layers": case("Gemma3ForCausalLM", head_dim=16, num_hidden_layers=4, query_pre_attn_scalar=16,
                              sliding_window=5, layer_types=[SLIDING, SLIDING, FULL, SLIDING],
                              attention_bias=True, tie_word_embeddings=True,
                              refused="attention_bias"),
    "phi3": case("Phi3ForCausalLM"),
    "phi3-window-partial": case("Phi3ForCausalLM", sliding_window=9, tie_word_embeddings=True,
                                rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                                                 "partial_rotary_factor": 0.75}),
    "phi3-longrope-long": case("Phi3ForCausalLM", original_max_position_embeddings=32, rope_parameters=longrope(32, 8)),
    "phi3-longrope-short": case("Phi3ForCausalLM", original_max_position_embeddings=256, num_key_value_heads=4,
                                rope_parameters={**longrope(256, 6), "partial_rotary_factor": 0.75}),
    "gpt2": case("GPT2LMHeadModel", GPT),
    "gpt2-scaled": case("GPT2LMHeadModel", GPT, n_inner=96, activation_function="gelu", tie_word_embeddings=False,
                        scale_attn_by_inverse_layer_idx=True, refused="scale_attn_by_inverse_layer_idx"),
    "gptneox": case("GPTNeoXForCausalLM"),
    "gptneox-serial": case("GPTNeoXForCausalLM", use_parallel_residual=False, attention_bias=False, hidden_act="relu",
                           tie_word_embeddings=True, rope_parameters={**LINEAR, "partial_rotary_factor": 0.5},
                           refused="hidden_act"),
    "falcon-7b": case("FalconForCausalLM", tie_word_embeddings=True),
    "falcon-7b-biases": case("FalconForCausalLM", tie_word_embeddings=False, bias=True, ffn_hidden_size=96,
                             parallel_attn=False, refused="parallel_attn"),
    "falcon-new": case("FalconForCausalLM", new_decoder_architecture=True, num_kv_heads=2, tie_word_embeddings=True),
    "falcon-new-one-norm": case("FalconForCausalLM", new_decoder_architecture=True, num_kv_heads=1,
                                num_ln_in_parallel_attn=1, tie_word_embeddings=True),
    "falcon-rw": case("FalconForCausalLM", alibi=True, multi_query=False, parallel_attn=False, bias=True,
                      tie_word_embeddings=True, refused="alibi"),
    "falcon-rw-six-heads": case("FalconForCausalLM", alibi=True, multi_query=False, parallel_attn=True, bias=False,
                                hidden_size=96, num_attention_heads=6, tie_word_embeddings=True, refused="alibi"),
    "falcon-rotary-mha": case("FalconForCausalLM", multi_query=False, bias=True, tie_word_embeddings=True,
                              refused="bias"),
    "stablelm": case("StableLmForCausalLM"),
    "stablelm-norms": case("StableLmForCausalLM", qk_layernorm=True, use_qkv_bias=True, num_key_value_heads=4),
    "stablelm-parallel": case("StableLmForCausalLM", use_parallel_residual=True, partial_rotary_factor=0.5),
    "stablelm-parallel-norms": case("StableLmForCausalLM", use_parallel_residual=True, qk_layernorm=True,
                                    tie_word_embeddings=True),
    "olmo2": case("Olmo2ForCausalLM"),
    "olmo2-tied": case("Olmo2ForCausalLM", num_key_value_heads=4, tie_word_embeddings=True),
    "olmo2-biases": case("Olmo2ForCausalLM", attention_bias=True, refused="attention_bias"),
    "granite": case("GraniteForCausalLM", embedding_multiplier=12.0, logits_scaling=6.0, residual_multiplier=0.22,
                    attention_multiplier=0.1),
    "granite-biases-tied": case("GraniteForCausalLM", attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
                                embedding_multiplier=3.0, logits_scaling=0.5),
    "starcoder2": case("Starcoder2ForCausalLM", tie_word_embeddings=True),
    "starcoder2-window": case("Starcoder2ForCausalLM", sliding_window=9, use_bias=False,
                              unsaid={"sliding_window": None}),
    "smollm3": case("SmolLM3ForCausalLM", num_hidden_layers=5, tie_word_embeddings=True),
    "smollm3-window": case("SmolLM3ForCausalLM", use_sliding_window=True, sliding_window=9, no_rope_layers=[1, 0, 0],
                           attention_bias=True, mlp_bias=True,
                           unsaid={"use_sliding_window": False, "no_rope_layers": [1, 1, 1]}),
    "cohere2": case("Cohere2ForCausalLM", num_hidden_layers=4, sliding_window=9, logit_scale=0.25,
                    tie_word_embeddings=True, rotary_pct=1.0),
    "cohere2-biases": case("Cohere2ForCausalLM", sliding_window=5, layer_types=[FULL, SLIDING, FULL],
                           attention_bias=True, logit_scale=2.0, tie_word_embeddings=True, rotary_pct=1.0,
                           refused="k_proj.bias"),
    "cohere": case("CohereForCausalLM", logit_scale=0.25, tie_word_embeddings=True),
    "cohere-norms": case("CohereForCausalLM", use_qk_norm=True, attention_bias=True, tie_word_embeddings=True),
    "olmoe": case("OlmoeForCausalLM", num_experts=6, num_experts_per_tok=2, unsaid={"rms_norm_eps": 1e-5}),
    "olmoe-norm-clipped": case("OlmoeForCausalLM", num_experts=6, num_experts_per_tok=3, norm_topk_prob=True,
                               clip_qkv=0.7, num_key_value_heads=4, refused="clip_qkv"),
    "olmoe-biases": case("OlmoeForCausalLM", num_experts=4, num_experts_per_tok=2, attention_bias=True,
                         refused="attention_bias"),
    "glm4": case("Glm4ForCausalLM", head_dim=16),
    "glm4-plain": case("Glm4ForCausalLM", head_dim=32, attention_bias=False, partial_rotary_factor=1.0,
                       tie_word_embeddings=True),
    "ernie4_5": case("Ernie4_5ForCausalLM", head_dim=32, tie_word_embeddings=True),
    "ernie4_5-biases": case("Ernie4_5ForCausalLM", head_dim=16, use_bias=True),
    "exaone4": case("Exaone4ForCausalLM", num_hidden_layers=5, sliding_window=9, head_dim=32,
                    rope_parameters=LLAMA3),
    "exaone4-full": case("Exaone4ForCausalLM", sliding_window=None, layer_types=[FULL] * 3, tie_word_embeddings=True),
    "seed-oss": case("SeedOssForCausalLM", head_dim=32),
    "seed-oss-biases": case("SeedOssForCausalLM", head_dim=16, attention_bias=False, attention_out_bias=True,
                            mlp_bias=True, tie_word_embeddings=True),
    "gpt-oss": case("GptOssForCausalLM", num_local_experts=6, num_experts_per_tok=2, head_dim=32, sliding_window=9,
                    rope_parameters={**YARN, "rope_theta": 150000.0, "beta_fast": 32.0,
                                                       "beta_slow": 1.0, "truncate": False}),
    "gpt-oss-plain": case("GptOssForCausalLM", num_local_experts=4, num_experts_per_tok=3, head_dim=16,
                          sliding_window=5, layer_types=[FULL, SLIDING, SLIDING], tie_word_embeddings=True,
                          rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, swiglu_limit=0.7,
                          swiglu_alpha=1.3, refused="swiglu"),
    "deepseek2": case("DeepseekV2ForCausalLM", **{**ROUTED, **GROUPS}, **LATENT, topk_method="group_limited_greedy",
                      routed_scaling_factor=1.5),
    "deepseek2-lite": case("DeepseekV2ForCausalLM", **ROUTED, **{**LATENT, "q_lora_rank": None}, topk_method="greedy"),
    "deepseek2-yarn": case("DeepseekV2ForCausalLM", **ROUTED, **{**LATENT, "q_lora_rank": None}, topk_method="greedy",
                           rope_parameters=MSCALE, unsaid=ONE_SCALE),
    "deepseek3": case("DeepseekV3ForCausalLM", **{**ROUTED, **GROUPS}, **LATENT, routed_scaling_factor=2.5,
                      norm_topk_prob=True),
    "deepseek3-halves": case("DeepseekV3ForCausalLM", **ROUTED, **{**LATENT, "q_lora_rank": None},
                             routed_scaling_factor=1.0, norm_topk_prob=False, rope_interleave=False,
                             attention_bias=True, refused="attention_bias"),
    "deepseek3-yarn": case("DeepseekV3ForCausalLM", **{**ROUTED, **GROUPS}, **LATENT, routed_scaling_factor=2.5,
                           norm_topk_prob=True, rope_parameters=MSCALE, unsaid=ONE_SCALE),
    "phi": case("PhiForCausalLM", num_key_value_heads=4),
    "phi-norms": case("PhiForCausalLM", qk_layernorm=True, partial_rotary_factor=0.25, refused="qk_layernorm"),
    "olmo": case("OlmoForCausalLM"),
    "olmo-clipped": case("OlmoForCausalLM", clip_qkv=0.7, tie_word_embeddings=True),
    "olmo-biases": case("OlmoForCausalLM", attention_bias=True, num_key_value_heads=4, refused="attention_bias"),
    "olmo3": case("Olmo3ForCausalLM", num_hidden_layers=5, sliding_window=9),
    "olmo3-yarn": case("Olmo3ForCausalLM", sliding_window=9, layer_types=[FULL, SLIDING, FULL], num_key_value_heads=4,
                       rope_parameters={FULL: {**YARN, "rope_theta": 500000.0, "attention_factor": 1.3},
                                        SLIDING: {"rope_type": "default", "rope_theta": 500000.0}}),
    "nemotron": case("NemotronForCausalLM"),
    "nemotron-biases": case("NemotronForCausalLM", attention_bias=True, mlp_bias=True, head_dim=32,
                            partial_rotary_factor=1.0, tie_word_embeddings=True),
    "arcee": case("ArceeForCausalLM"),
    "arcee-biases-yarn": case("ArceeForCausalLM", attention_bias=True, mlp_bias=True, rope_parameters=YARN),
    "granitemoe": case("GraniteMoeForCausalLM", num_local_experts=6, num_experts_per_tok=2, embedding_multiplier=12.0,
                       logits_scaling=6.0, residual_multiplier=0.22, attention_multiplier=0.1),
    "dots1": case("Dots1ForCausalLM", **{**ROUTED, **GROUPS}, norm_topk_prob=True, routed_scaling_factor=2.5,
                  head_dim=32),
    "dots1-window": case("Dots1ForCausalLM", **ROUTED, norm_topk_prob=False, sliding_window=9, max_window_layers=1,
                         attention_bias=True, unsaid={"max_window_layers": 3}),
    "glm4moe": case("Glm4MoeForCausalLM", **{**ROUTED, **GROUPS, "num_key_value_heads": 2}, routed_scaling_factor=1.5,
                    head_dim=32),
    "glm4moe-norms": case("Glm4MoeForCausalLM", **ROUTED, use_qk_norm=True, attention_bias=True, norm_topk_prob=False),
    # Of some classes llama.cpp's converter writes an epsilon of its own, or none.
    "glm": case("GlmForCausalLM", head_dim=16, unsaid={"rms_norm_eps": 1.5625e-07}),
    "glm-plain": case("GlmForCausalLM", head_dim=32, attention_bias=False, partial_rotary_factor=1.0,
                      num_key_value_heads=4, unsaid={"rms_norm_eps": 1.5625e-07}),
    "gpt-bigcode": case("GPTBigCodeForCausalLM", GPT),
    "gpt-bigcode-mha": case("GPTBigCodeForCausalLM", GPT, multi_query=False, n_inner=96, tie_word_embeddings=False,
                            activation_function="relu", refused="multi_query"),
    "bloom": case("BloomForCausalLM", tie_word_embeddings=True),
    "bloom-six-heads": case("BloomForCausalLM", hidden_size=96, num_attention_heads=6, tie_word_embeddings=True,
                            apply_residual_connection_post_layernorm=True,
                            refused="apply_residual_connection_post_layernorm"),
    "mpt": case("MptForCausalLM", d_model=64, n_heads=4, n_layers=3, max_seq_len=512,
                unsaid={"layer_norm_epsilon": 1e-5}),
    "mpt-clipped": case("MptForCausalLM", d_model=96, n_heads=6, n_layers=3, max_seq_len=512, expansion_ratio=2,
                        attn_config={"clip_qkv": 0.7, "alibi_bias_max": 4}, tie_word_embeddings=True,
                        refused="expansion_ratio"),
    "hunyuan-dense": case("HunYuanDenseV1ForCausalLM", head_dim=32),
    "hunyuan-dense-biases": case("HunYuanDenseV1ForCausalLM", head_dim=16, attention_bias=True,
                                 tie_word_embeddings=True),
    "apertus": case("ApertusForCausalLM", rope_parameters=LLAMA3),
    "apertus-biases": case("ApertusForCausalLM", attention_bias=True, num_key_value_heads=4, tie_word_embeddings=True,
                           rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
    "helium": case("HeliumForCausalLM", head_dim=16),
    "helium-biases": case("HeliumForCausalLM", head_dim=16, num_key_value_heads=4, mlp_bias=True,
                          tie_word_embeddings=True),
}

# Fields that a class has under other names, or hasn't.
WITHOUT = {"MptForCausalLM": ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                              "num_key_value_heads", "max_position_embeddings"],
           "BloomForCausalLM": ["intermediate_size", "num_key_value_heads", "max_position_embeddings"],
           "FalconForCausalLM": ["intermediate_size", "num_key_value_heads"],
           "GPTNeoXForCausalLM": ["num_key_value_heads"]}


# --- making a model -------------------------------------------------------------------------------------------------

def config_of(case, **changes):
    config = getattr(transformers, case["class"]).config_class
    without, known = WITHOUT.get(case["class"], []), config()
    epsilons = {name: EPSILON for name in EPSILONS if hasattr(known, name)}
    fields = {name: copy.deepcopy(value) for name, value in {**case["config"], **changes}.items()
              if name not in without}
    return config(**{**epsilons, **fields})


def attention_of(case):
    """In eager attention, Falcon's class adds ALiBi twice: once to the scores and once in the mask."""
    return "sdpa" if case["config"].get("alibi") else "eager"


def model_of(case, seed):
    """The model with random values. What is a start value gets noise; routers get values that decide clearly."""
    torch.manual_seed(seed)
    config = config_of(case)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32,
                                                          attn_implementation=attention_of(case))
    assert type(model).__name__ == case["class"], type(model)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not name.endswith((".act_fn.beta", ".act_fn.eps")):
                value.copy_(moved(name, value))
    return model.eval()


def moved(name, value):
    if value.dim() == 1 or name.endswith("_bias"):
        return value + torch.randn(value.shape) * 0.1
    if value.abs().max() == 0 or value.std() < 0.05:
        value = torch.randn(value.shape) * 0.08
    router = any(part in name for part in [".gate.weight", ".router."])
    return value * 4 if router else value


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double()


def greedy_of(model, ids):
    """The continuation, and by how much the token before won at the closest step."""
    new, margin = [], float("inf")
    for _ in range(TOKENS):
        top = logits_of(model, ids + new)[-1].topk(2)
        margin = min(margin, float(top.values[0] - top.values[1]))
        new.append(int(top.indices[0]))
    return new, margin


def is_steady(model, ids, logits):
    """Whether values of a little other rounding lead to the same logits: no router chooses by the last bits."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for p in changed.parameters():
            p.mul_(1 + torch.randn(p.shape) * 1e-6)
    return (logits_of(changed, ids) - logits).abs().max() < 4e-5 * (1 + logits.abs().max())


def as_in_gguf(case, model):
    """The model with the config that its GGUF has."""
    config = config_of(case, **case["unsaid"])
    changed = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32,
                                                            attn_implementation=attention_of(case))
    changed.load_state_dict(model.state_dict())
    if changed._can_set_experts_implementation():
        changed.set_experts_implementation("eager")
    return changed.eval()


def tokenizer_into(folder, name):
    shutil.copytree(TOKENIZERS / (SENTENCEPIECE if name == UNPREFIXED else name), folder, dirs_exist_ok=True)
    if name == UNPREFIXED:
        file = folder / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        tokenizer["pre_tokenizer"]["prepend_scheme"] = "never"
        tokenizer["decoder"]["decoders"][-1]["start"] = 0
        file.write_text(json.dumps(tokenizer))
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def expectation(model, ids):
    """What is expected of a model, or None where the choice of an expert or a token is left to rounding."""
    logits = logits_of(model, ids)
    if not is_steady(model, ids, logits):
        return None
    greedy, margin = greedy_of(model, ids)
    if margin < 1e-3 * (1 + float(logits.abs().max())):
        return None
    return {"ids": torch.tensor(ids), "logits": logits.float().contiguous(), "greedy": torch.tensor(greedy)}


def make(name, folder):
    """Writes the folder of a case with the first seed that leaves no choice to rounding; returns the model."""
    case = CASES[name]
    ids = tokenizer_into(folder, case["tokenizer"])(PROMPT)["input_ids"]
    for seed in range(SEEDS):
        model = model_of(case, seed)
        models = {"expected": model, **({"expected-gguf": as_in_gguf(case, model)} if case["unsaid"] else {})}
        expected = {file: expectation(model, ids) for file, model in models.items()}
        if all(expected.values()):
            break
    else:
        raise RuntimeError(f"each of {SEEDS} seeds leaves a choice to rounding")
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "prompt.txt").write_text(PROMPT)
    for file, tensors in expected.items():
        save_file(tensors, folder / f"{file}.safetensors")
    return model
