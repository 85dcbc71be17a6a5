"""Makes adapters of every kind with PEFT, merges them with PEFT and with atombank, and compares the weights bit by bit.

    python merge.py ATOMBANK_BINARY WORK_DIR [CASES]

CASES is how many random configurations of a kind are tried beside those of the table. Where PEFT uses a function that
isn't rounded one way everywhere (a linear system solved, exp), elements may differ by a few units in the last place. In
f32 the merged model also has to give the logits of base and adapter. Each check prints a line; the last line counts
them. Exit code 1 where one failed.
"""
import collections
import json
import random
import shutil
import sys
import warnings
import zlib

import peft
import torch
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from common import WORK, atombank, check, finish, gap, hf_logits
from models import DTYPES, base_folder, guarded, is_tied, load, refused, same_weights, tensors, with_head

NUMBER = int(sys.argv[3]) if len(sys.argv) > 3 else 12
UNTIED = ["llama", "mistral", "phi3", "qwen3", "medium", "stablelm"]
TIED = ["qwen2", "gemma", "smollm3", "granite"]
LINEAR = UNTIED + TIED + ["olmo2", "starcoder2", "qwen2-odd", "gpt-neox", "gemma2", "gemma3"]
EXPERTS = ["qwen3moe", "qwen2moe", "mixtral"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERT_PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LOGITS = 1e-3
SOLVED, LOGARITHM = 32, 16              # units that a linear system solved, and log, may be off in f32

# `base` and `dtype` are those of the base, `settings` the fields of the kind's config, `saved` is the adapter's file: a type
# or "bin". `expected` is where the weights to compare with are from: a plain merge ("peft"), a merge into a base whose
# head isn't tied ("untied", for PEFT's merge of one side changes both), or that with the embeddings as head ("both", for
# PEFT's merge of tied adapters adds both to the one tensor). `units` is how far an element may be off, in units in the
# last place of the larger of its size and the tensor's mean size.
Case = collections.namedtuple("Case", "base kind settings dtype saved expected units", defaults=["f32", "f32", "peft", 0])

CASES = {
    # LoRA
    "plain": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=ATTENTION + ["gate_proj", "up_proj", "down_proj"])),
    "plain bf16": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=ATTENTION + ["down_proj"]), "bf16"),
    "plain f16": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=ATTENTION + ["down_proj"]), "f16"),
    "saved in f16": Case("medium", "LORA", dict(r=8, lora_alpha=16, target_modules="all-linear"), "bf16", "f16"),
    "saved in bf16": Case("medium", "LORA", dict(r=8, lora_alpha=16, target_modules="all-linear"), "f32", "bf16"),
    "saved as pickle": Case("llama", "LORA", dict(r=5, lora_alpha=7, target_modules=["q_proj", "down_proj"]), "bf16", "bin"),
    "rank of one": Case("llama", "LORA", dict(r=1, lora_alpha=1, target_modules=ATTENTION)),
    "rank of 256": Case("llama", "LORA", dict(r=256, lora_alpha=16, target_modules=["q_proj", "down_proj"])),
    "rank-stabilized": Case("llama", "LORA", dict(r=8, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"])),
    "patterns": Case("llama", "LORA", dict(r=4, lora_alpha=6, target_modules=ATTENTION, rank_pattern={"layers.0.self_attn.q_proj": 2, "[kv]_proj": 6},
                                           alpha_pattern={"layers.1.self_attn.*": 3, "v_proj": 9.5})),
    "patterns, rank-stabilized": Case("llama", "LORA", dict(r=4, lora_alpha=6, use_rslora=True, target_modules=ATTENTION + ["down_proj"],
                                                            rank_pattern={"k_proj": 8}, alpha_pattern={"down_proj": 2})),
    "pattern with a caret": Case("llama", "LORA", dict(r=4, lora_alpha=6, target_modules=ATTENTION,
                                                       rank_pattern={"^model.layers.1.self_attn.q_proj": 3, "q_proj": 7})),
    "zero alpha": Case("llama", "LORA", dict(r=4, lora_alpha=0, target_modules=["q_proj", "v_proj"], alpha_pattern={"v_proj": 8})),
    "regex": Case("qwen3", "LORA", dict(r=4, lora_alpha=8, target_modules=r".*\.1\..*\.(q_proj|down_proj)")),
    "excluded": Case("qwen3", "LORA", dict(r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=["k_proj", "model.layers.0.mlp.up_proj"])),
    "one layer": Case("medium", "LORA", dict(r=4, lora_alpha=8, target_modules=ATTENTION, layers_to_transform=[1, 3], layers_pattern="layers")),
    "fused": Case("phi3", "LORA", dict(r=4, lora_alpha=8, target_modules=["qkv_proj", "gate_up_proj"]), "f16"),
    "conv1d": Case("gpt2", "LORA", dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True), "bf16"),
    "embeddings": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head", "q_proj"]), "bf16"),
    "lora_bias": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj"], lora_bias=True), "bf16"),
    "lora_bias, conv1d": Case("gpt2", "LORA", dict(r=4, lora_alpha=8, target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True)),
    "all biases": Case("gpt2", "LORA", dict(r=4, lora_alpha=8, target_modules=["c_attn"], bias="all", fan_in_fan_out=True), "f16"),
    "biases of targets": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj"], bias="lora_only"), "bf16"),
    "all biases and lora_bias": Case("starcoder2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj", "c_fc"], bias="all", lora_bias=True), "bf16"),
    "whole modules": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["lm_head", "input_layernorm"]), "bf16"),
    "a whole block": Case("qwen3", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["layers.1.mlp"])),
    "whole embeddings and head": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]), "f16", "bf16"),
    "tokens": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices=[9, 2, 300]), "bf16"),
    "tokens of both": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [2, 9], "lm_head": [1]})),
    "DoRA": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=ATTENTION + ["down_proj"], use_dora=True)),
    "DoRA bf16": Case("medium", "LORA", dict(r=4, lora_alpha=8, target_modules=ATTENTION + ["down_proj"], use_dora=True, use_rslora=True), "bf16"),
    "DoRA, conv1d": Case("gpt2", "LORA", dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"], use_dora=True, fan_in_fan_out=True)),
    "DoRA, embeddings": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head", "q_proj"], use_dora=True), "bf16"),
    "initialised as pissa, converted": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa")),
    "initialised as olora, converted": Case("llama", "LORA", dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj"], init_lora_weights="olora")),
    "initialised as gaussian": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="gaussian"), "bf16"),
    "initialised as orthogonal": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="orthogonal"), "f16"),
    # Tied embeddings and head
    "tied, head": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"]), expected="untied"),
    "tied, head bf16": Case("gemma", "LORA", dict(r=4, lora_alpha=8, target_modules=["lm_head"]), "bf16", expected="untied"),
    "tied, embeddings": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["embed_tokens"]), expected="untied"),
    "tied, both": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head"]), expected="untied"),
    "tied, both DoRA": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head"], use_dora=True), expected="untied"),
    "tied, gpt2 embeddings": Case("gpt2", "LORA", dict(r=4, lora_alpha=8, target_modules=["wte", "c_attn"], fan_in_fan_out=True), expected="untied"),
    "tied, gpt2 head": Case("gpt2", "LORA", dict(r=4, lora_alpha=8, target_modules=["lm_head"]), expected="untied"),
    "tied, kept tied": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True), expected="both"),
    "tied, kept tied by the embeddings": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True), "bf16", expected="both"),
    "tied, gpt2 embeddings that PEFT doesn't tie": Case("gpt2", "LORA", dict(r=4, lora_alpha=8, target_modules=["wte", "c_attn"], fan_in_fan_out=True, ensure_weight_tying=True), expected="untied"),
    "tied, whole head": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "tied, whole embeddings": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["embed_tokens"]), "bf16"),
    "tied, whole both": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])),
    "tied, whole both kept tied": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True)),
    "tied, whole head kept tied": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True), "bf16"),
    "tied, tokens": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices=[2, 9])),
    "tied, tokens of the head": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices={"lm_head": [2, 9]}), expected="untied"),
    "tied, other tokens of both": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [2, 9], "lm_head": [1]}), expected="untied"),
    "tied, the same tokens of both": Case("qwen2", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [2, 9], "lm_head": [2, 9]})),
    "tied, LoHa of the head": Case("qwen2", "LOHA", dict(r=4, alpha=8, target_modules=["lm_head"]), expected="untied"),
    "tied, IA3 of the head": Case("qwen2", "IA3", dict(target_modules=["lm_head"], feedforward_modules=[]), expected="untied"),
    "tied, OFT of the embeddings": Case("qwen2", "OFT", dict(oft_block_size=8, target_modules=["embed_tokens"]), expected="untied"),
    # Parameters of experts
    "experts": Case("qwen3moe", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=EXPERT_PARAMETERS)),
    "experts bf16": Case("qwen3moe", "LORA", dict(r=4, lora_alpha=8, target_modules=[], target_parameters=EXPERT_PARAMETERS[::-1], use_rslora=True), "bf16"),
    "one parameter of experts": Case("mixtral", "LORA", dict(r=3, lora_alpha=8, target_modules=[], target_parameters=["experts.down_proj"]), "f16"),
    "experts and router": Case("mixtral", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj", "gate.weight"])),
    "experts, patterns": Case("qwen2moe", "LORA", dict(r=4, lora_alpha=8, target_modules=["v_proj"], target_parameters=EXPERT_PARAMETERS,
                                                       rank_pattern={"experts.down_proj": 2}, alpha_pattern={"experts.gate_up_proj": 3}), "bf16"),
    "experts by their old names": Case("mixtral", "LORA", dict(r=4, lora_alpha=8, target_modules=["w1", "w2", "w3"])),
    "parameter of a linear": Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=[], target_parameters=["q_proj.weight"]), "bf16"),
    # Other kinds
    "LoHa": Case("llama", "LOHA", dict(r=4, alpha=6, target_modules=["q_proj", "k_proj", "down_proj"])),
    "LoHa, head": Case("llama", "LOHA", dict(r=4, alpha=6, target_modules=["lm_head"], modules_to_save=["norm"]), "bf16"),
    "LoKr": Case("llama", "LOKR", dict(r=4, alpha=6, target_modules=["q_proj", "k_proj", "down_proj"])),
    "LoKr, both decomposed": Case("llama", "LOKR", dict(r=2, alpha=6, decompose_both=True, decompose_factor=8, target_modules=["q_proj", "down_proj"]), units=2),
    "LoKr, neither decomposed": Case("llama", "LOKR", dict(r=16, alpha=6, target_modules=["q_proj", "down_proj"]), "bf16"),
    "IA3": Case("qwen2", "IA3", dict(target_modules=["q_proj", "k_proj", "down_proj"], feedforward_modules=["down_proj"]), "bf16"),
    "IA3, conv1d": Case("gpt2", "IA3", dict(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True)),
    "VeRA": Case("llama", "VERA", dict(r=8, target_modules=["q_proj", "k_proj", "down_proj"], save_projection=True)),
    "VeRA, conv1d": Case("gpt2", "VERA", dict(r=8, target_modules=["c_attn", "c_fc"], save_projection=True, fan_in_fan_out=True), "bf16"),
    "VeRA, biases of targets": Case("qwen2", "VERA", dict(r=8, target_modules=["q_proj", "o_proj"], save_projection=True, bias="vera_only"), "f16"),
    "OFT": Case("llama", "OFT", dict(oft_block_size=8, target_modules=["q_proj", "k_proj", "down_proj"])),
    "OFT of larger blocks": Case("llama", "OFT", dict(oft_block_size=32, target_modules=["q_proj", "k_proj", "down_proj"]), "bf16"),
    "OFT, shared": Case("llama", "OFT", dict(r=8, oft_block_size=0, block_share=True, target_modules=["q_proj", "down_proj"])),
    "OFT, three terms": Case("llama", "OFT", dict(oft_block_size=16, num_cayley_neumann_terms=3, target_modules=["q_proj"])),
    "OFT, two terms": Case("llama", "OFT", dict(oft_block_size=16, num_cayley_neumann_terms=2, target_modules=["q_proj"])),
    "OFT, constrained": Case("llama", "OFT", dict(oft_block_size=8, coft=True, eps=0.2, target_modules=["q_proj"]), units=4),
    "OFT, solved": Case("llama", "OFT", dict(oft_block_size=8, use_cayley_neumann=False, target_modules=["q_proj", "down_proj"]), units=SOLVED),
    "OFT, embeddings": Case("llama", "OFT", dict(oft_block_size=8, target_modules=["embed_tokens", "q_proj"]), "bf16"),
    "OFT, large blocks": Case("medium", "OFT", dict(r=8, oft_block_size=0, target_modules=["q_proj", "down_proj"])),
    "OFT, odd size": Case("qwen2-odd", "OFT", dict(oft_block_size=7, target_modules=["q_proj", "down_proj"])),
    "BOFT": Case("llama", "BOFT", dict(boft_block_size=8, target_modules=["q_proj", "k_proj", "down_proj"]), units=SOLVED),
    "BOFT by number": Case("qwen2", "BOFT", dict(boft_block_size=0, boft_block_num=16, target_modules=["q_proj"], bias="boft_only"), "bf16", units=1),
    "VB-LoRA": Case("llama", "VBLORA", dict(r=4, num_vectors=20, vector_length=16, topk=2, target_modules=["q_proj", "down_proj"])),
    "VB-LoRA, the largest": Case("llama", "VBLORA", dict(r=4, num_vectors=300, vector_length=16, topk=3, target_modules=["q_proj"], save_only_topk_weights=True), units=LOGARITHM),
    "VB-LoRA, conv1d": Case("gpt2", "VBLORA", dict(r=4, num_vectors=20, vector_length=16, target_modules=["c_attn"], fan_in_fan_out=True), "bf16", units=1),
    "RandLoRA": Case("llama", "RANDLORA", dict(r=32, target_modules=["q_proj", "k_proj", "down_proj"], save_projection=True)),
    "RandLoRA bf16": Case("medium", "RANDLORA", dict(r=24, target_modules=["q_proj", "k_proj", "up_proj"], save_projection=True), "bf16"),
    "RandLoRA, conv1d": Case("gpt2", "RANDLORA", dict(r=16, target_modules=["c_attn", "c_fc"], save_projection=True, fan_in_fan_out=True)),
    "RandLoRA, sparse": Case("llama", "RANDLORA", dict(r=32, target_modules=["q_proj", "down_proj"], sparse=True, save_projection=True), "f16"),
    "LN tuning": Case("llama", "LN_TUNING", dict(target_modules=["input_layernorm", "norm"]), "f32", "bf16"),
    "LN tuning, conv1d": Case("gpt2", "LN_TUNING", dict(target_modules=["ln_1", "ln_f"]), "bf16"),
    "trainable tokens": Case("llama", "TRAINABLE_TOKENS", dict(target_modules=["embed_tokens"], token_indices=[7, 1, 5]), "bf16"),
    "trainable tokens, tied": Case("qwen2", "TRAINABLE_TOKENS", dict(target_modules=["embed_tokens"], token_indices=[1, 5, 7])),
}


def load_untied(folder, dtype):
    """The model with a head of its own that is the embeddings."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], attn_implementation="eager", tie_word_embeddings=False).eval()
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    return model


def config_of(case):
    return PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(case.kind)](task_type="CAUSAL_LM", **case.settings)


def randomise(model):
    """Values that no initialisation leaves: none is 0, and those that are factors stay near 1."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape)
            if not value.requires_grad:
                continue
            if "lora_magnitude" in name or "ia3_l" in name or "boft_s" in name or "randlora_gamma" in name:
                value.copy_(value * (1 + 0.1 * noise))
            elif "oft_R" in name or "oft_embedding_R" in name:
                value.copy_(0.05 * noise)
            elif "hada_" in name or "lokr_" in name:
                value.copy_(0.3 * noise)
            elif "vblora_logits" in name:
                # All different, in 16 bits too: which of equal ones are among the largest, torch leaves open.
                value.copy_(torch.linspace(-2, 2, value.shape[-1])[noise.argsort(-1)])
            elif any(part in name for part in ["lora_A", "lora_B", "lora_embedding", "vera_lambda", "randlora_lambda", "boft_R", "vector_bank"]):
                value.copy_(0.1 * noise)
            else:                                           # whole modules, biases, rows of tokens
                value.copy_(value + 0.1 * noise)
        if any(getattr(config, "ensure_weight_tying", False) for config in model.peft_config.values()):
            # Tied adapters are copies of each other where the base isn't in f32.
            embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
            if hasattr(head, "lora_A"):
                head.lora_A["default"].weight.copy_(embeddings.lora_embedding_B["default"].T)
                head.lora_B["default"].weight.copy_(embeddings.lora_embedding_A["default"].T)


def recast(folder, saved):
    """The adapter's file in another type or as a pickle."""
    file = folder / "adapter_model.safetensors"
    values = load_file(file)
    if saved == "bin":
        torch.save(values, folder / "adapter_model.bin")
        file.unlink()
    elif saved != "f32":
        save_file({name: value.to(DTYPES[saved]) if value.is_floating_point() else value for name, value in values.items()}, file, {"format": "pt"})


def make_adapter(name, case, base, folder):
    torch.manual_seed(zlib.crc32(name.encode()))
    model = peft.get_peft_model(load(base, case.dtype), config_of(case))
    converted = {}
    if "converted" in name:
        converted["path_initial_model_for_weight_conversion"] = str(folder / "initial")
        model.save_pretrained(folder / "initial")
    randomise(model)
    model.save_pretrained(folder, **converted)
    shutil.rmtree(folder / "initial", ignore_errors=True)
    recast(folder, case.saved)


def merged_by_peft(case, base, adapter, folder):
    model = (load if case.expected == "peft" else load_untied)(base, case.dtype)
    model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    if case.expected == "both":
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    model.save_pretrained(folder)
    found = tensors(folder)
    shutil.rmtree(folder)
    return found


def title(name, case):
    return f"{case.kind} {name} ({case.base} {case.dtype}, adapter {case.saved})"


def run_case(name, case):
    base, slug = base_folder(case.base, case.dtype), "".join(c if c.isalnum() else "-" for c in f"{case.kind}-{name}")
    adapter, out = WORK / f"{slug}-adapter", WORK / f"{slug}-merged"
    make_adapter(name, case, base, adapter)
    expected = merged_by_peft(case, base, adapter, WORK / f"{slug}-peft")
    atombank("merge", base, adapter, "-o", out, "--quiet")
    found = tensors(out)
    passed, line = same_weights(case.units, base, found, expected)
    tied = json.loads((out / "config.json").read_text()).get("tie_word_embeddings", True)
    if tied and not is_tied(with_head(found)):
        passed, line = False, f"{line}; the config ties what differs"
    check(f"{title(name, case)}: weights", passed, line)
    if case.dtype == "f32":
        model = peft.PeftModel.from_pretrained(load(base, "f32"), adapter).eval()
        ids = [3 + i * 37 % 300 for i in range(48)]
        difference = gap(hf_logits(load(out, "f32"), ids), hf_logits(model, ids))
        check(f"{title(name, case)}: logits", difference <= LOGITS, f"max |difference from base and adapter| {difference:.1e}")
    if passed:
        shutil.rmtree(adapter)
        shutil.rmtree(out)


# Random configurations

linears = {}


def linears_of(base):
    """Paths of the base's linear layers, but the head: whether it is a Conv1D, whether it has a bias, its sizes."""
    if base not in linears:
        model = load(base_folder(base, "f32"), "f32")
        linears[base] = {path: (isinstance(module, Conv1D), module.bias is not None, tuple(module.weight.shape)) for path, module in model.named_modules()
                         if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not model.get_output_embeddings()}
        if base in EXPERTS:
            linears[base] = {path: about for path, about in linears[base].items() if "self_attn" in path}
    return linears[base]


def random_targets(rng, base, few=False):
    """Fields that choose modules, and the names of modules that are chosen (and more that aren't)."""
    paths = list(linears_of(base))
    leaves = sorted({path.rsplit(".", 1)[1] for path in paths})
    chosen = rng.sample(leaves, rng.randint(1, min(len(leaves), 2 if few else 5)))
    blocks = "h" if ".h." in paths[0] else "layers"
    form, settings = rng.randrange(7), {}
    if form == 0:
        settings["target_modules"] = rng.sample([path for path in paths if path.rsplit(".", 1)[1] in chosen], 2)
    elif form == 1:
        settings["target_modules"] = rf".*\.({'|'.join(chosen)})"
    elif form == 2 and not few and base not in EXPERTS:
        settings["target_modules"], chosen = "all-linear", leaves
    else:
        settings["target_modules"] = chosen
    narrowed = rng.randrange(5)
    if narrowed == 0 and form > 2:
        settings["layers_to_transform"] = rng.choice([1, [0], [1]])
        settings.update(rng.choice([{}, {"layers_pattern": blocks}, {"layers_pattern": [blocks]}]))
    elif narrowed == 1 and form:
        settings["exclude_modules"] = rf".*\.{blocks}\.0\..*"
    elif narrowed == 2 and form and len(chosen) > 1:
        settings["exclude_modules"] = [chosen[0]]
    return settings, chosen


def random_patterns(rng, chosen, highest):
    keys = [rng.choice(chosen), f"layers.1.*.{rng.choice(chosen)}", f"^model.layers.0.*{rng.choice(chosen)}", f"({'|'.join(chosen)})"]
    settings = {}
    if rng.random() < 0.4:
        # The saved config has them in this order, and the first that matches counts.
        settings["rank_pattern"] = {key: rng.randint(1, highest) for key in sorted(rng.sample(keys, rng.randint(1, 3)))}
    if rng.random() < 0.4:
        settings["alpha_pattern"] = {key: rng.choice([rng.randint(1, 32), 2.5]) for key in rng.sample(keys, rng.randint(1, 3))}
    return settings


def saved_modules(rng, base):
    # PEFT takes all modules whose path ends so. It can't copy StableLM's norms of heads.
    norms = {"gpt2": "ln_f", "gpt-neox": "final_layer_norm", "stablelm": "input_layernorm"}
    return {"modules_to_save": rng.choice([["lm_head"], [norms.get(base, "norm")]])} if rng.random() < 0.2 else {}


def lora(rng):
    base = rng.choice(LINEAR + ["gpt2", "gpt2"] + EXPERTS)
    settings, chosen = random_targets(rng, base)
    settings |= dict(r=rng.randint(1, 16), lora_alpha=rng.choice([rng.randint(1, 32), 4, 16]), use_rslora=rng.random() < 0.3, use_dora=rng.random() < 0.25,
                     bias=rng.choice(["none", "none", "all", "lora_only"]), fan_in_fan_out=base == "gpt2" and rng.random() < 0.7)
    settings["init_lora_weights"] = rng.choice([True, True, False, "gaussian"])
    settings |= random_patterns(rng, chosen, 16) | saved_modules(rng, base)
    targets = settings["target_modules"]
    if all(about[1] for path, about in linears_of(base).items() if path.rsplit(".", 1)[1] in chosen):
        settings["lora_bias"] = not settings["use_dora"] and settings["init_lora_weights"] != "gaussian" and rng.random() < 0.5
    if base in EXPERTS and rng.random() < 0.7:
        settings["target_parameters"] = rng.sample(EXPERT_PARAMETERS, rng.randint(1, 2))
        settings |= dict(use_dora=False, lora_bias=False)
        settings.pop("layers_to_transform", None), settings.pop("layers_pattern", None)
    elif base in UNTIED and isinstance(targets, list) and not settings.get("lora_bias") and "modules_to_save" not in settings and rng.random() < 0.4:
        if rng.random() < 0.5 and "layers_to_transform" not in settings:
            settings["target_modules"] = targets + rng.choice([["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
        else:
            settings["trainable_token_indices"] = rng.choice([rng.sample(range(300), 5), {"embed_tokens": rng.sample(range(300), 3), "lm_head": [0, 5]}])
    return base, settings, 0


def loha(rng):
    base = rng.choice(LINEAR)
    settings, chosen = random_targets(rng, base)
    return base, settings | dict(r=rng.randint(1, 16), alpha=rng.randint(1, 32)) | random_patterns(rng, chosen, 16) | saved_modules(rng, base), 0


def lokr(rng):
    base = rng.choice(LINEAR)
    settings, chosen = random_targets(rng, base)
    settings |= dict(r=rng.randint(1, 16), alpha=rng.randint(1, 32), decompose_both=rng.random() < 0.5, decompose_factor=rng.choice([-1, -1, 4, 8, 16]))
    # The product of small factors is summed otherwise than that of large ones.
    return base, settings | random_patterns(rng, chosen, 16) | saved_modules(rng, base), 2


def ia3(rng):
    base = rng.choice(LINEAR + ["gpt2"])
    settings, chosen = random_targets(rng, base)
    inputs = rng.sample(chosen, rng.randint(0, len(chosen)))
    settings.pop("layers_to_transform", None), settings.pop("layers_pattern", None)
    if settings["target_modules"] == "all-linear":
        settings["target_modules"] = chosen
    if isinstance(settings["target_modules"], str):
        inputs = rf".*\.({'|'.join(inputs)})" if inputs else "nothing"
    else:
        # PEFT wants them among the targets.
        inputs = [target for target in settings["target_modules"] if target.rsplit(".", 1)[-1] in inputs]
    return base, settings | dict(feedforward_modules=inputs, fan_in_fan_out=base == "gpt2") | saved_modules(rng, base), 0


def vera(rng):
    base = rng.choice(LINEAR + ["gpt2"])
    settings, _ = random_targets(rng, base)
    settings.pop("exclude_modules", None)
    settings |= dict(r=rng.randint(1, 24), save_projection=True, bias=rng.choice(["none", "none", "all", "vera_only"]), fan_in_fan_out=base == "gpt2")
    return base, settings | saved_modules(rng, base), 0


def oft(rng):
    base = rng.choice(LINEAR)
    settings, _ = random_targets(rng, base)
    settings |= rng.choice([dict(r=0, oft_block_size=rng.choice([2, 3, 4, 5, 8, 16, 32, 64])), dict(r=rng.choice([2, 4, 7, 8, 16]), oft_block_size=0)])
    settings |= dict(block_share=rng.random() < 0.3, num_cayley_neumann_terms=rng.randint(2, 7), use_cayley_neumann=rng.random() < 0.75,
                     bias=rng.choice(["none", "none", "all", "oft_only"]))
    return base, settings | saved_modules(rng, base), 0 if settings["use_cayley_neumann"] else SOLVED


def boft(rng):
    base = rng.choice(LINEAR)
    settings, _ = random_targets(rng, base)
    settings |= rng.choice([dict(boft_block_size=rng.choice([2, 4, 8, 16])), dict(boft_block_size=0, boft_block_num=rng.choice([4, 8, 16]))])
    return base, settings | dict(bias=rng.choice(["none", "none", "all", "boft_only"])) | saved_modules(rng, base), SOLVED


def vblora(rng):
    base = rng.choice(LINEAR + ["gpt2"])
    settings, _ = random_targets(rng, base)
    settings |= dict(r=rng.randint(1, 16), num_vectors=rng.choice([10, 90, 300]), vector_length=rng.choice([2, 4, 8, 16]), topk=rng.randint(1, 4),
                     save_only_topk_weights=rng.random() < 0.4, bias=rng.choice(["none", "none", "all", "vblora_only"]), fan_in_fan_out=base == "gpt2")
    return base, settings | saved_modules(rng, base), LOGARITHM if settings["save_only_topk_weights"] else 0


def randlora(rng):
    base = rng.choice(LINEAR + ["gpt2"])
    settings, _ = random_targets(rng, base, few=True)
    settings.pop("exclude_modules", None)
    settings |= dict(r=rng.choice([8, 15, 16, 32, 40]), randlora_alpha=rng.choice([640, 100]), save_projection=True, sparse=rng.random() < 0.2,
                     bias=rng.choice(["none", "none", "all", "randlora_only"]), fan_in_fan_out=base == "gpt2")
    return base, settings | saved_modules(rng, base), 0


def trainable_tokens(rng):
    base = rng.choice(UNTIED + TIED)
    return base, dict(target_modules=["embed_tokens"], token_indices=rng.sample(range(300), rng.randint(1, 20))), 0


def ln_tuning(rng):
    base = rng.choice([base for base in UNTIED + TIED if base != "stablelm"])
    return base, dict(target_modules=rng.choice([["input_layernorm"], ["norm"], r".*layers\.1\..*norm"])), 0


RANDOM = {"LORA": lora, "LOHA": loha, "LOKR": lokr, "IA3": ia3, "VERA": vera, "OFT": oft, "BOFT": boft, "VBLORA": vblora, "RANDLORA": randlora,
          "TRAINABLE_TOKENS": trainable_tokens, "LN_TUNING": ln_tuning}


def random_cases(kind, number):
    rng = random.Random(f"{kind} of merge.py")
    for i in range(number):
        base, settings, units = RANDOM[kind](rng)
        dtype, saved = rng.choice(["f32", "f32", "f16", "bf16", "bf16"]), rng.choice(["f32", "f32", "f16", "bf16", "bin"])
        if settings.get("save_only_topk_weights"):
            saved = rng.choice(["f32", "bin"])              # PEFT itself can't load others
        yield f"random {i}", Case(base, kind, settings, dtype, saved, "peft", units if dtype == "f32" else min(units, 1))


# What can't be merged

def edited(name, adapter, edit=lambda values: None, **fields):
    """A copy of an adapter whose tensors and config are changed."""
    folder = WORK / f"edited-{name.replace(' ', '-')}"
    shutil.copytree(adapter, folder)
    values = load_file(folder / "adapter_model.safetensors")
    edit(values)
    save_file(values, folder / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    return folder


def adapter_of(name, case):
    folder = WORK / f"good-{name}"
    make_adapter(name, case, base_folder(case.base, case.dtype), folder)
    return folder


def what_is_refused():
    llama = base_folder("llama", "f32")
    query = "base_model.model.model.layers.0.self_attn.q_proj"
    plain = adapter_of("plain", Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])))
    dora = adapter_of("dora", Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], use_dora=True)))
    shapes = adapter_of("shapes", Case("qwen2-odd", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])))
    layers = adapter_of("layers", Case("medium", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"])))
    names = adapter_of("names", Case("gpt2", "LORA", dict(r=4, lora_alpha=8, target_modules=["c_attn"])))
    loha = adapter_of("loha", Case("llama", "LOHA", dict(r=4, alpha=8, target_modules=["q_proj"])))
    heads = [adapter_of(name, Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["lm_head"]))) for name in ["head", "other-head"]]
    bias = adapter_of("bias", Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], lora_bias=True)))
    vera = adapter_of("vera", Case("llama", "VERA", dict(r=4, target_modules=["q_proj"], save_projection=False)))
    invoked = adapter_of("invoked", Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], alora_invocation_tokens=[5, 6])))
    pissa = adapter_of("pissa", Case("llama", "LORA", dict(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="pissa")))

    def not_a_number(values):
        values[f"{query}.lora_A.weight"][1, 2] = float("nan")

    def infinite(values):
        values[f"{query}.lora_B.weight"][1, 2] = float("inf")

    def huge(values):
        values[f"{query}.lora_B.weight"][1] = 3e38

    def shorter(values):
        values[f"{query}.lora_A.weight"] = values[f"{query}.lora_A.weight"][:3].clone()

    def without(key):
        return lambda values: values.pop(key)

    def with_key(key):
        return lambda values: values.update({key: torch.ones(4)})

    def zero_row(values):
        values[f"{query}.lora_B.weight"][3] = 0

    zeros = WORK / "base-with-zeros"
    shutil.copytree(llama, zeros)
    weights = tensors(zeros)
    weights["model.layers.0.self_attn.q_proj.weight"][3] = 0
    save_file(weights, zeros / "model.safetensors", {"format": "pt"})

    refused("another base's shapes", llama, shapes)
    refused("another base's layers", llama, layers)
    refused("another base's modules", llama, names)
    refused("unknown kind", llama, edited("unknown kind", plain, peft_type="SOMETHING"))
    refused("kind that changes no weights", llama, edited("prompt kind", plain, peft_type="PROMPT_TUNING"))
    refused("no kind", llama, edited("no kind", plain, peft_type=None))
    refused("B missing", llama, edited("B missing", plain, without(f"{query}.lora_B.weight")))
    refused("A missing", llama, edited("A missing", plain, without(f"{query}.lora_A.weight")))
    refused("magnitude missing", llama, edited("magnitude missing", dora, without(f"{query}.lora_magnitude_vector")))
    refused("LoHa's factor missing", llama, edited("factor missing", loha, without(f"{query}.hada_w2_a")))
    refused("surplus key", llama, edited("surplus key", plain, with_key(f"{query}.lora_C.weight")))
    refused("surplus key of nothing", llama, edited("surplus key of nothing", plain, with_key("something")))
    refused("surplus key of no module", llama, edited("surplus module", plain, with_key("base_model.model.model.layers.0.self_attn.r_proj.lora_A.weight")))
    refused("ranks that differ", llama, edited("ranks that differ", plain, shorter))
    refused("rank other than the config's", llama, edited("rank other", plain, r=8))
    refused("NaN in A", llama, edited("NaN in A", plain, not_a_number))
    refused("infinity in B", llama, edited("infinity in B", plain, infinite))
    refused("product that overflows", llama, edited("product that overflows", plain, huge, lora_alpha=100))
    refused("DoRA of a zero row", zeros, edited("zero row", dora, zero_row))
    refused("bias for a layer without one", llama, bias)
    refused("projection that isn't saved", llama, vera)
    refused("adapter that waits for tokens", llama, invoked)
    refused("adapter on a base that it changes", llama, pissa)
    refused("two whole heads", llama, *heads)
    config, weights = edited("no config", plain), edited("no weights", plain)
    (config / "adapter_config.json").unlink()
    (weights / "adapter_model.safetensors").unlink()
    refused("no config", llama, config)
    refused("no weights", llama, weights)
    broken = edited("no JSON", plain)
    (broken / "adapter_config.json").write_text("{")
    refused("config that is no JSON", llama, broken)


warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
# Solving many systems at once goes wrong with more: torch 2.15 raises an error or gives wrong numbers.
torch.set_num_threads(1)
WORK.mkdir(parents=True)
for name, case in CASES.items():
    guarded(title(name, case), lambda: run_case(name, case))
for kind in RANDOM:
    for name, case in random_cases(kind, NUMBER):
        guarded(title(name, case), lambda: run_case(name, case))
guarded("refused", what_is_refused)
finish("merge")
