"""Converts a small model of many families to GGUF and back: llama.cpp and transformers compute what the original does.

    python families.py ATOMBANK_BINARY WORK_DIR [CASE ...]

Most models have the config and the tensors of fixtures/families, with other values. What is compared are
log-probabilities of the whole vocabulary, for encoders the mean of a text's states. Each check prints a line; the last
line counts them. Exit code 1 where one failed. Every model has a process of its own, because llama.cpp ends the whole
process where it meets what it doesn't expect; WORK_DIR/CASE.log has what it said.
"""
import json
import multiprocessing
import os
import shutil
import sys
import traceback
import types

os.environ["GGML_NO_BACKTRACE"] = "1"

import gguf
import numpy as np
import torch
import transformers
import xllamacpp
from safetensors.torch import save_file

from common import (FIXTURES, WORK, atombank, check, finish, gap, llama_cpp, llama_cpp_logprobs, log_softmax, prompt_of,
                    readable, with_ggml_gelu)

FAMILIES = FIXTURES / "families"
STEPS, CONTEXT, LIMIT, SECONDS = 4, 128, 1e-3, 300
SERVERS = []
BPE, GLM = "5e66dc70", "57ce202a"       # folders of FAMILIES/tokenizers


# --- the cases ------------------------------------------------------------------------------------------------------

def ternary(model):
    """BitNet's weights have three values, to which the converter rounds all others."""
    for name, p in model.named_parameters():
        if name.endswith("_proj.weight"):
            p.copy_(p.sign() * 0.1 * (p.abs() > 0.08))


def unbiased(model):
    """Gemma 3n cuts feed-forward values at a number of standard deviations, which llama.cpp takes as unbiased ones."""
    def cut(self, x):
        factor = torch.distributions.normal.Normal(0, 1).icdf(torch.tensor(self.activation_sparsity))
        return torch.relu(x - x.mean(-1, keepdim=True) - factor * x.std(-1, keepdim=True))
    for module in model.modules():
        if hasattr(module, "_gaussian_topk"):
            module._gaussian_topk = types.MethodType(cut, module)


def fixture(fixture=None, **options):
    """A case with the config of a fixture, changed by `fields`.

    made: the class that makes and saves the model, in place of the fixture's tensors; values: changes the made model's
    values; kind: "encoder" where the model has no head; back: fields of the config that comes back to load it with;
    convert: options of `convert`; tokenizer: another one; prompt: tokens of the prompt; limit: of the difference;
    adapt: changes the original to what llama.cpp computes; without: checks that can't be done.
    """
    return {"fixture": fixture, **options}


def made(cls, tokenizer=BPE, back=None, projector=None, **config):
    """A case with a config of its own.

    projector: fields of preprocessor_config.json; llama.cpp then loads the other part of the model, too.
    """
    case = {"config": {"architectures": [cls], **config}, "made": cls, "tokenizer": tokenizer, "back": back or {}}
    return case if projector is None else {**case, "projector": projector}


USUAL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 320, "bos_token_id": 0,
         "eos_token_id": 2, "tie_word_embeddings": False}
# Rotary frequencies in parts for time, height and width. In a text all three have the same position.
MROPE = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]}
INTERLEAVED = {"rope_type": "default", "rope_theta": 5000000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
          "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
          "head_dim": 16, "num_key_value_heads": 4}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 128,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
OSS_ROPE = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 128,
            "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
# Vision and audio models stay small: the classes make them, nothing looks at them.
QWEN3_VISION = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 64,
                "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0]}
QWEN2_VISION = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
QWEN25_VISION = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 64,
                 "patch_size": 14, "fullatt_block_indexes": [1]}
QWEN3_AUDIO = {"d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
               "num_mel_bins": 80, "max_source_positions": 64, "downsample_hidden_size": 32, "output_dim": 64,
               "n_window": 50}
QWEN35_VISION = {name: value for name, value in QWEN3_VISION.items() if name != "deepstack_visual_indexes"}
ASR_AUDIO = {**QWEN3_AUDIO, "max_position_embeddings": 13}
PIXTRAL = {"model_type": "pixtral", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
           "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "head_dim": 32}
GLM_VISION = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 64,
              "patch_size": 14, "image_size": 56, "spatial_merge_size": 2, "temporal_patch_size": 2}
GLM5_VISION = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
               "patch_size": 14, "image_size": 56}
SIGLIP = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2,
          "image_size": 56, "patch_size": 14}

CASES = {
    # llama.cpp multiplies embeddings by sqrt(hidden_size), has a window in three of four layers and normalizes the
    # experts' weights only if it is told to, which the class always does.
    "afmoe": fixture(made="AfmoeForCausalLM", fields={"mup_enabled": True, "num_hidden_layers": 4, "route_norm": True,
                     "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention",
                     "full_attention"]}),
    "apertus": fixture(),
    "arcee": fixture(),
    # The converter has a head's rows in pairs as if all of them rotated. In this class half of them do.
    "bamba": made("BambaForCausalLM", model_type="bamba", **USUAL, mamba_d_state=16, mamba_d_conv=4, mamba_expand=2,
                  mamba_n_heads=4, mamba_d_head=32, mamba_n_groups=1, attn_layer_indices=[1],
                  attn_rotary_emb=8) | {"without": ["llama.cpp"]},
    # llama.cpp of this version has SiLU in BitNet, whatever the config says.
    "bitnet": fixture(made="BitNetForCausalLM", values=ternary, fields={"hidden_act": "silu"},
                      back={"hidden_act": "silu"}),
    # The converter takes the context from another field, or else the width.
    "bloom": fixture("bloom-model", made="BloomForCausalLM", fields={"seq_length": 512}),
    "cohere": fixture(fields={"logit_scale": 1.0}),
    "cohere2": fixture(fields={"logit_scale": 1.0}),
    "cohere2moe": fixture(fields={"logit_scale": 1.0}),
    # The class takes no rope_theta out of attn_config.
    "dbrx": fixture(fields={"rope_parameters": {"rope_theta": 500000.0}}),
    "deepseek2": made("DeepseekV2ForCausalLM", model_type="deepseek_v2", **{**USUAL, **ROUTED, **LATENT},
                      routed_scaling_factor=1.0, topk_method="greedy", scoring_func="softmax"),
    "deepseek3": made("DeepseekV3ForCausalLM", model_type="deepseek_v3", **{**USUAL, **ROUTED, **LATENT, "n_group": 2},
                      routed_scaling_factor=2.5, norm_topk_prob=True, scoring_func="sigmoid", topk_method="noaux_tc",
                      rope_parameters=YARN),
    # Fewer tokens than the prompt has would be chosen by scores that are 0 for many of them. llama.cpp rotates an
    # indexer's heads by a matrix of at least 64.
    "deepseek32": fixture(made="DeepseekV32ForCausalLM", fields={"index_head_dim": 128, "index_topk": 128}),
    "dots1": fixture(),
    # llama.cpp expects both kinds of layers.
    "embedding-gemma": fixture(made="Gemma3TextModel", kind="encoder", fields={"num_hidden_layers": 6,
                               "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}),
    "ernie4_5": fixture(),
    # The converter takes the shared experts' size from other fields, which agree in published models.
    "ernie4_5-moe": fixture(made="Ernie4_5_MoeForCausalLM", fields={"intermediate_size": 128}),
    "eurobert": fixture(kind="encoder", fields={"mask_token_id": 3}),
    "exaone-moe": fixture(),
    "exaone4-full": fixture(),
    # llama.cpp applies the gate before the norm, as published models do.
    "falcon-h1": fixture(fields={"mamba_norm_before_gate": False}),
    "falcon-mamba": made("FalconMambaForCausalLM", model_type="falcon_mamba", **{**USUAL, "intermediate_size": 128},
                         state_size=16, time_step_rank=4, conv_kernel=4),
    "gemma3-vl": fixture(made="Gemma3ForConditionalGeneration", projector={"image_seq_length": 4}),
    # Such sizes are in llama.cpp's code.
    "gemma3n": fixture(adapt=unbiased, made="Gemma3nForCausalLM", fields={"hidden_size_per_layer_input": 256,
                       "laurel_rank": 64, "num_kv_shared_layers": 0, "num_hidden_layers": 5,
                       "intermediate_size": [96] * 5, "activation_sparsity_pattern": [0.95] * 5,
                       "layer_types": ["sliding_attention"] * 4 + ["full_attention"]}),
    # llama.cpp caps logits at 30 where the file doesn't say otherwise.
    "gemma4": made("Gemma4ForCausalLM", "e3b07704", model_type="gemma4_text", **{**USUAL, "vocab_size": 512,
                   "tie_word_embeddings": True}, head_dim=32, global_head_dim=64, hidden_size_per_layer_input=32,
                   vocab_size_per_layer_input=512, sliding_window=64, num_kv_shared_layers=0,
                   layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=30.0),
    "gemma4-vl": fixture(made="Gemma4ForConditionalGeneration",
                         fields={"text_config": {"final_logit_softcapping": 30.0}}),
    # The context's length in the file is the width, and the epsilon 1e-5, as the converter has it.
    "glm": made("GlmForCausalLM", GLM, {"rms_norm_eps": 1e-5}, model_type="glm", **{**USUAL, "vocab_size": 323},
                head_dim=16, pad_token_id=0, rms_norm_eps=1e-5, partial_rotary_factor=0.5) | {"prompt": 40},
    "glm-dsa": fixture(made="GlmMoeDsaForCausalLM", fields={"index_head_dim": 128, "index_topk": 128}),
    "glm4": fixture(),
    "glm4moe": fixture(),
    "glm4moe-lite": made("Glm4MoeLiteForCausalLM", GLM, model_type="glm4_moe_lite", **{**USUAL, **ROUTED, **LATENT,
                         "vocab_size": 323}, scoring_func="sigmoid"),
    "glm4v": made("Glm4vForConditionalGeneration", GLM, {"vision_config": GLM_VISION}, model_type="glm4v",
                  vision_config=GLM_VISION, text_config={**USUAL, "vocab_size": 323,
                  "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                  "mrope_section": [1, 1, 2]}}),
    # llama.cpp has four streams only; for the indexer see deepseek32. The class saves no layer for more tokens.
    "glm5-next": fixture("glm5next", made="Glm5NextForConditionalGeneration", back={"vision_config": GLM5_VISION},
                         fields={"vision_config": GLM5_VISION, "text_config": {"hc_mult": 4, "index_head_dim": 128,
                         "index_topk": 512, "pad_token_id": 0, "mlp_layer_types": ["dense", "sparse"],
                         "num_nextn_predict_layers": 0}}),
    "gpt-bigcode": fixture(),
    # llama.cpp rounds the bounds of yarn's ramp, for which published configs don't ask.
    "gpt-oss": fixture(fields={"rope_parameters": OSS_ROPE}, back={"rope_parameters": OSS_ROPE}),
    "granite-hybrid": fixture(),
    # The class doesn't scale logits.
    "granite-speech": fixture(fields={"text_config": {"logits_scaling": 1.0}}),
    "granite-swa": fixture(),
    "granitemoe": fixture(),
    "granitemoeshared": made("GraniteMoeSharedForCausalLM", model_type="granitemoeshared", **USUAL,
                             num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=64,
                             embedding_multiplier=12.0, logits_scaling=6.0, residual_multiplier=0.22,
                             attention_multiplier=0.0156),
    "helium": fixture("llama-model", made="HeliumForCausalLM"),
    "hrm-text": fixture(fields={"num_key_value_heads": 4}),
    "hunyuan-dense": fixture("hunyuan-dense-tiktoken", made="HunYuanDenseV1ForCausalLM", tokenizer=BPE,
                             fields={"model_type": "hunyuan_v1_dense"}),
    # The converter writes the first token's id of the published model, which this vocabulary hasn't.
    "hunyuan-moe": fixture(made="HunYuanMoEV1ForCausalLM", tokenizer=BPE, fields={"model_type": "hunyuan_v1_moe"},
                           without=["comes back"]),
    "hy-v3": fixture(),
    "jais2": fixture(),
    "jamba": fixture(),
    "kimi-linear": fixture("kimi-linear-model", made="KimiLinearForCausalLM"),
    # llama.cpp has full attention in every fourth layer, from the first on, and no attention_factor.
    "laguna": fixture("laguna-xs", made="LagunaForCausalLM", fields={"model_type": "laguna", "num_hidden_layers": 4,
                      "num_attention_heads_per_layer": [4, 6, 6, 6],
                      "layer_types": ["full_attention"] + ["sliding_attention"] * 3,
                      "mlp_layer_types": ["dense"] + ["sparse"] * 3,
                      "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500000.0,
                      "partial_rotary_factor": 0.5}}}),
    "lfm2": fixture("lfm2-model", made="Lfm2ForCausalLM"),
    "lfm2moe": fixture(),
    # llama.cpp knows chunks of 8192 alone, and layers without rotation are every fourth.
    "llama4": fixture(made="Llama4ForCausalLM", fields={"num_hidden_layers": 4, "attention_chunk_size": 8192,
                      "no_rope_layers": [1, 1, 1, 0], "moe_layers": [0, 1, 2, 3], "layer_types": ["chunked_attention",
                      "chunked_attention", "chunked_attention", "full_attention"]}),
    "mamba": fixture(),
    "mamba2": fixture(),
    # llama.cpp has one base of rotation for both kinds of layers, and expects windows in one of them.
    "mellum": fixture(fields={"layer_types": ["sliding_attention", "full_attention"],
                      "rope_parameters": {"sliding_attention": {"rope_theta": 500000.0}}}),
    # The class has its own defaults for what the published config.json says in other fields.
    "mimo2": fixture("mimo2-nomtp", made="MiMoV2FlashForCausalLM", fields={"num_hidden_layers": 6,
                     "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0], "moe_layer_freq": [0, 1, 1, 1, 1, 1],
                     "partial_rotary_factor": 0.334, "sliding_window": 128, "sliding_window_size": 128,
                     "rms_norm_eps": 1e-5}),
    # The converter writes neither the factor nor the length of the original context.
    "minicpm3": fixture("minicpm3-long", fields={"model_type": "minicpm3",
                        "rope_scaling": {"original_max_position_embeddings": 512}}),
    "minimax-m2": fixture(),
    "ministral3": fixture(),
    # Its projector isn't loaded: like the reference's, it lacks v.token_embd.img_break, which mtmd asks for.
    "mistral3-vl": made("Mistral3ForConditionalGeneration", "76d641a2", model_type="mistral3",
                        spatial_merge_size=2, vision_config=PIXTRAL, text_config={**USUAL, "vocab_size": 330,
                        "model_type": "mistral", "head_dim": 32}),
    "mpt": fixture(),
    "nemotron": fixture(),
    "nemotron-h": fixture(),
    "olmo": fixture(),
    "olmo3": made("Olmo3ForCausalLM", model_type="olmo3", **{**USUAL, "num_hidden_layers": 4}, sliding_window=64,
                  layer_types=["sliding_attention"] * 3 + ["full_attention"]),
    "olmoe": fixture(),
    # llama.cpp's Phi-2 has as many keys as queries, and the converter a feed-forward size of four times the width.
    "phi": fixture(made="PhiForCausalLM", fields={"num_key_value_heads": 4, "intermediate_size": 256}),
    # transformers' router weighs experts in another way (sparsemixer) than llama.cpp's softmax. The file has no place
    # for the factor of short and long contexts; this one follows from their lengths.
    "phimoe": fixture("phimoe-long", without=["llama.cpp"], fields={"rope_parameters": {"short_mscale": 1.25 ** 0.5,
                      "long_mscale": 1.25 ** 0.5}}),
    "qwen2-audio": fixture(made="Qwen2AudioForConditionalGeneration", projector={}),
    # llama.cpp of this version reads no epsilon for the architecture qwen2vl and takes 0.
    "qwen2-vl": made("Qwen2VLForConditionalGeneration", projector={}, back={"vision_config": QWEN2_VISION},
                     model_type="qwen2_vl", vision_config=QWEN2_VISION, text_config={**USUAL, "rope_parameters": MROPE,
                     "rms_norm_eps": 1e-9}),
    "qwen2.5-vl": made("Qwen2_5_VLForConditionalGeneration", projector={}, back={"vision_config": QWEN2_VISION},
                       model_type="qwen2_5_vl", vision_config=QWEN25_VISION, text_config={**USUAL,
                       "rope_parameters": MROPE, "rms_norm_eps": 1e-9}),
    # llama.cpp wants the parts of the rotary frequencies, which the class's text model hasn't.
    "qwen3-asr": made("Qwen3ASRForConditionalGeneration", back={"audio_config": ASR_AUDIO}, model_type="qwen3_asr",
                      tie_word_embeddings=False, audio_config={**ASR_AUDIO, "model_type": "qwen3_asr_encoder"},
                      text_config={**USUAL, "model_type": "qwen3", "head_dim": 32, "rope_parameters": {**MROPE,
                      "mrope_section": [6, 5, 5]}}),
    "qwen3-omni": made("Qwen3OmniMoeThinkerForConditionalGeneration", back={"vision_config": QWEN3_VISION,
                       "audio_config": QWEN3_AUDIO}, model_type="qwen3_omni_moe_thinker", vision_config=QWEN3_VISION,
                       audio_config=QWEN3_AUDIO, text_config={**USUAL, **EXPERTS, "head_dim": 32,
                       "rope_parameters": INTERLEAVED}),
    "qwen3-vl": made("Qwen3VLForConditionalGeneration", projector={}, back={"vision_config": QWEN3_VISION},
                     model_type="qwen3_vl", vision_config=QWEN3_VISION, text_config={**USUAL, "head_dim": 32,
                     "rope_parameters": INTERLEAVED}),
    "qwen3-vl-moe": made("Qwen3VLMoeForConditionalGeneration", projector={}, back={"vision_config": QWEN3_VISION},
                         model_type="qwen3_vl_moe", vision_config=QWEN3_VISION, text_config={**USUAL, **EXPERTS,
                         "head_dim": 32, "rope_parameters": INTERLEAVED}),
    "qwen35": fixture(),
    "qwen35-vl": made("Qwen3_5ForConditionalGeneration", projector={}, model_type="qwen3_5",
                      vision_config=QWEN35_VISION, text_config={**USUAL, "linear_conv_kernel_dim": 4,
                      "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
                      "linear_num_value_heads": 4, "head_dim": 32, "layer_types": ["linear_attention",
                      "full_attention"], "full_attention_interval": 2, "rope_parameters": {"rope_type": "default",
                      "rope_theta": 10000000.0, "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1],
                      "mrope_interleaved": True}}),
    "qwen35moe-fused": fixture(),
    "qwen3next": fixture(),
    "seed-oss": fixture(),
    "smolvlm": made("SmolVLMForConditionalGeneration", projector={"size": {"longest_edge": 112}}, model_type="smolvlm",
                    vision_config=SIGLIP, scale_factor=2, text_config={**USUAL, "model_type": "llama"}),
    "voxtral": fixture(made="VoxtralForConditionalGeneration", projector={}),
    # transformers clears the embedding of pad_token_id as it loads this class. The original config names none.
    "youtu": fixture(back={"pad_token_id": None}),
}


# --- making a model -------------------------------------------------------------------------------------------------

def update(config, fields):
    for name, value in fields.items():
        if isinstance(value, dict) and "rope_type" not in value and isinstance(config.get(name), dict):
            update(config[name], value)
        else:
            config[name] = value


def in_f32(config):
    for name, value in config.items():
        if isinstance(value, dict):
            in_f32(value)
        elif name in ["dtype", "torch_dtype"] and value:
            config[name] = "float32"


def original(case, name, folder):
    """Makes the folder of a case: config, tokenizer and weights; returns the converter's options."""
    source = FAMILIES / (case.get("fixture") or name)
    about = {"options": [], "tokenizer": None}
    if "config" in case:
        folder.mkdir()
        config = case["config"]
    else:
        about = json.loads((source / "case.json").read_text())
        shutil.copytree(source / "model", folder)
        config = json.loads((folder / "config.json").read_text())
    shutil.copytree(FAMILIES / "tokenizers" / (case.get("tokenizer") or about["tokenizer"]), folder, dirs_exist_ok=True)
    update(config, case.get("fields", {}))
    in_f32(config)
    if "made" in case:
        config["architectures"] = [case["made"]]
    (folder / "config.json").write_text(json.dumps(config))
    if "made" in case:
        save_made(case, folder)
    else:
        save_fixture(source, folder)
    pre = "--pre" in about["options"] and "tokenizer" in case
    return [*([] if pre else about["options"]), *case.get("convert", [])]


def save_made(case, folder):
    cls = getattr(transformers, case["made"])
    torch.manual_seed(3)
    model = cls(cls.config_class.from_pretrained(folder))
    with torch.no_grad():
        for name, p in model.state_dict().items():
            if p.is_floating_point() and "inv_freq" not in name:
                p.copy_(random_like(p))
        case.get("values", lambda model: None)(model)
    model.float().save_pretrained(folder)


def random_like(p):
    """Matrices get values whose logits are neither flat nor certain; what is a start value gets noise."""
    if p.dim() > 1 and p.abs().max() < 2:
        return torch.randn(p.shape) * 0.12
    return torch.nan_to_num(p.float(), nan=0.0, posinf=1.0, neginf=-1.0) + torch.randn(p.shape) * 0.1


def save_fixture(source, folder):
    """The tensors of a fixture in F32, with values as good as random."""
    torch.manual_seed(3)
    for file, tensors in json.loads((source / "tensors.json").read_text()).items():
        values = {}
        for tensor in tensors:
            values[tensor["name"]] = value_of(tensor, values)
        (folder / file).parent.mkdir(exist_ok=True, parents=True)
        save_file(values, folder / file, metadata={"format": "pt"})


def value_of(tensor, others):
    shape, values = tensor["shape"], tensor["values"]
    if values == "random":
        return torch.randn(shape) * (0.12 if len(shape) > 1 else 0.08)
    if values == "positive":
        return 0.6 + 0.8 * torch.rand(shape)
    if values == "zero":
        return torch.zeros(shape)
    if "same" in values:
        return others[values["same"]].clone()
    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I32": torch.int32,
              "I64": torch.int64, "U8": torch.uint8}
    kept = torch.frombuffer(bytearray(values["kept"]), dtype=dtypes[tensor["dtype"]]).reshape(shape)
    return kept.float() if kept.is_floating_point() else kept.clone()


# --- what computes it -----------------------------------------------------------------------------------------------

def class_of(folder):
    """The class that config.json names. Some names are those of code that comes with a model."""
    config = json.loads((folder / "config.json").read_text())
    return getattr(transformers, config["architectures"][0], None) or transformers.AutoModelForCausalLM


def load(folder, fields):
    """The model, and the names of tensors of the text model that the class misses or doesn't know."""
    cls = class_of(folder)
    known = getattr(cls, "config_class", None)
    fields = {name: value for name, value in fields.items() if known is None or hasattr(known(), name)}
    model, info = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                      output_loading_info=True, **fields)
    for config in [model.config, model.config.get_text_config()]:
        config.use_cache = False
    others = [name for name in [*info["missing_keys"], *info["unexpected_keys"]] if not of_other_part(name)]
    return model.eval(), sorted(others)


def of_other_part(name):
    parts = ["visual", "vision", "audio_tower", "connector", "multi_modal_projector", "mtp.", "audio_model",
             "image_newline"]
    return any(part in name for part in parts)


def computed(model, kind, ids):
    with torch.no_grad():
        answer = model(torch.tensor([ids]))
    return (answer.last_hidden_state if kind == "encoder" else answer.logits)[0].float().numpy()


def in_llama_cpp(path, model, case, tokenizer, prompt, vocab):
    """How far llama.cpp is off."""
    model = with_ggml_gelu(model)
    case.get("adapt", lambda model: None)(model)
    if case.get("kind") == "encoder":
        server = llama_cpp(path, CONTEXT, embedding=True,
                           pooling_type=xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN)
        found = np.array(server.handle_embeddings({"input": prompt})["data"][0]["embedding"])
        mean = computed(model, "encoder", prompt).mean(0)
        return gap(found, mean / np.linalg.norm(mean))
    server, token = llama_cpp(path, CONTEXT), readable(tokenizer, vocab)
    found, _ = llama_cpp_logprobs(server, prompt, token, STEPS, vocab)
    return gap(found, log_softmax(computed(model, "decoder", prompt + [token] * (STEPS - 1))[-STEPS:, :vocab]))


def with_projector(path, projector):
    """Has llama.cpp load both. It refuses the model where it can't take the projector."""
    params = xllamacpp.CommonParams()
    params.mmproj.path = str(projector)
    # It is kept until the process ends: a server that goes before its first request may wait for itself for ever.
    SERVERS.append(llama_cpp(path, CONTEXT, mmproj=params.mmproj, mmproj_use_gpu=False))
    return SERVERS[-1].handle_completions({"prompt": "x", "n_predict": 1})


# --- running a case -------------------------------------------------------------------------------------------------

def run(name, report):
    case = CASES[name]
    folder, path, back = WORK / name, WORK / f"{name}.gguf", WORK / f"{name}-back"
    options = original(case, name, folder)
    atombank("convert", folder, "-o", path, "--type", "f32", *options)
    model, others = load(folder, {})
    if others:
        raise RuntimeError(f"the original has other tensors than its class: {others[:4]} of {len(others)}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vocab = len(gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].data)
    prompt, kind = prompt_of(tokenizer, vocab)[:case.get("prompt")], case.get("kind", "decoder")
    expected = computed(model, kind, prompt)

    def comes_back():
        atombank("convert", path, "-o", back)
        restored, others = load(back, case.get("back", {}))
        difference = gap(computed(restored, kind, prompt)[:, :vocab], expected[:, :vocab])
        unknown = f"; tensors missing or not known: {others[:3]} of {len(others)}" if others else ""
        report(f"{name}: {type(restored).__name__} loads what comes back", difference <= LIMIT and not others,
               f"max |difference| {difference:.1e}{unknown}")

    def runs():
        difference = in_llama_cpp(path, model, case, tokenizer, prompt, vocab)
        report(f"{name}: llama.cpp", difference <= case.get("limit", LIMIT),
        f"max |difference| {difference:.1e} over {vocab} tokens")
    def loads_projector():
        projector = WORK / f"{name}-mmproj.gguf"
        (folder / "preprocessor_config.json").write_text(json.dumps({
            "image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.26, 0.27], "feature_size": 80, **case["projector"]}))
        atombank("convert", folder, "-o", projector, "--mmproj", "--type", "f32")
        answer = with_projector(path, projector)
        count = len(gguf.GGUFReader(projector).tensors)
        report(f"{name}: llama.cpp takes the projector", "choices" in answer, f"{count} tensors")
    steps = [("comes back", comes_back), ("llama.cpp", runs)] + [("llama.cpp takes the projector",
    loads_projector)] * ("projector" in case)
    for title, step in steps:
        if title not in case.get("without", []):
            guarded(f"{name}: {title}", step, report)


def guarded(title, step, report):
    try:
        step()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
        report(title, False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]} ({place})")


def child(name, pipe):
    log = os.open(WORK / f"{name}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    guarded(name, lambda: run(name, lambda *line: pipe.send(line)), lambda *line: pipe.send(line))
    pipe.send(None)
    os._exit(0)                         # llama.cpp's threads are still there


def in_child(name):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(name, theirs))
    process.start()
    theirs.close()
    line = "none"
    try:
        while line is not None and ours.poll(SECONDS):
            line = ours.recv()
            if line is not None:
                check(*line)
    except EOFError:
        pass
    if line is not None:
        process.kill()
        process.join()
        lines = (WORK / f"{name}.log").read_text(errors="replace").splitlines()
        said = [text for text in lines if "ASSERT" in text or "error" in text]
        check(name, False, f"the process ended with {process.exitcode}: {said[:2]}")
    process.join()


torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
WORK.mkdir(parents=True)
for name in sys.argv[3:] or CASES:
    in_child(name)
finish("families")
