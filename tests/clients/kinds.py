"""Merges adapters of PEFT's further kinds with PEFT and with atombank, and compares the weights.

    python kinds.py ATOMBANK_BINARY WORK_DIR [KIND ..]

Each kind has several configurations, with random values, on bases of three types. Where PEFT's order of operations can be
reproduced, all bits have to be the same. Where it goes through a Fourier transform, LAPACK or a function that isn't rounded
one way everywhere, elements may be off by some units in the last place (`UNITS`). merge.py has the other kinds. Each check
prints a line; the last line counts them. Exit code 1 where one failed.
"""
import collections
import shutil
import sys
import warnings
import zlib

import peft
import torch
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

from common import WORK, atombank, check, finish
from models import base_folder, guarded, load, same_weights, tensors

ONLY = sys.argv[3:]

# `units` is how far an element may be off in f32, in units in the last place of the larger of its size and the tensor's mean
# size; in 16-bit types it is at most one, or four where several steps are rounded (FRoD, OSF, KaSA).
Case = collections.namedtuple("Case", "kind base settings units dtypes", defaults=[0, ("f32", "bf16")])

QK = ["q_proj", "k_proj"]
TWO = ["q_proj", "down_proj"]
THREE = ["q_proj", "k_proj", "down_proj"]
ALL = ("f32", "bf16", "f16")
PLAIN = [
    Case("BEFT", "qwen2", dict(target_modules=["q_proj", "v_proj"]), 0, ALL),
    Case("BEFT", "gpt-neox", dict(target_modules=["query_key_value"], modules_to_save=["final_layer_norm"])),
    Case("C3A", "llama", dict(block_size=32, target_modules=THREE), 2, ALL),
    Case("C3A", "llama", dict(block_size=128, target_modules=TWO, block_size_pattern={"down_proj": 64}), 2),
    Case("C3A", "qwen2", dict(block_size=1, target_modules=["q_proj"], bias="c3a_only", layers_to_transform=[1]), 2),
    Case("DELORA", "llama", dict(r=8, target_modules=THREE), 0, ALL),
    Case("DELORA", "llama", dict(r=1, delora_lambda=3, target_modules=TWO, rank_pattern={"down_proj": 5}, lambda_pattern={"q_proj": 7})),
    Case("DELORA", "qwen2-odd", dict(r=16, target_modules=["q_proj", "o_proj"], exclude_modules=["o_proj"], bias="all")),
    Case("GLORA", "qwen2", dict(r=4, target_modules=["q_proj", "o_proj"]), 16, ALL),
    Case("GLORA", "qwen2", dict(target_modules=["q_proj"], config_A_B="vector", config_C="vector", config_D_E="vector"), 16),
    Case("GLORA", "llama", dict(target_modules=TWO, config_A_B="constant", config_C="none", config_D_E="none")),
    Case("GLORA", "qwen2", dict(target_modules=["k_proj"], config_A_B="none", config_C="none", config_D_E="constant")),
    Case("GRALORA", "llama", dict(r=32, target_modules=THREE), 0, ALL),
    Case("GRALORA", "llama", dict(r=12, gralora_k=4, alpha=10, target_modules=TWO, hybrid_r=5)),
    Case("GRALORA", "gpt2", dict(r=8, hybrid_r=3, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)),
    Case("GRALORA", "llama", dict(r=256, gralora_k=2, target_modules=["q_proj"], bias="gralora_only")),
    Case("GRALORA", "llama", dict(r=3, gralora_k=1, target_modules=["down_proj"], layers_to_transform=0)),
    Case("HIRA", "llama", dict(r=32, target_modules=THREE), 0, ALL),
    Case("HIRA", "llama", dict(r=5, target_modules=["embed_tokens", "q_proj"], rank_pattern={"q_proj": 7})),
    Case("HIRA", "gpt2", dict(r=6, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True), 0, ALL),
    Case("MISS", "llama", dict(r=64, target_modules=THREE), 0, ALL),
    Case("MISS", "llama", dict(r=7, target_modules=TWO, bias="MiSS_only")),
    Case("MISS", "llama", dict(r=16, init_weights="bat", target_modules=THREE), 0, ALL),
    Case("MISS", "llama", dict(r=8, init_weights="bat", target_modules=["q_proj"])),
    Case("MISS", "llama", dict(r=4, init_weights="bat", target_modules=["q_proj"])),
    Case("MISS", "llama", dict(r=12, init_weights="mini", mini_r=16, target_modules=TWO), 0, ALL),
    Case("PVERA", "llama", dict(r=8, target_modules=THREE), 0, ALL),
    Case("PVERA", "gpt2", dict(r=12, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True, sample_at_inference=True, generator_seed=3)),
    Case("PVERA", "qwen2", dict(r=4, target_modules=["q_proj"], bias="all")),
    Case("ROAD", "llama", dict(target_modules=THREE), 16, ALL),
    Case("ROAD", "qwen2", dict(variant="road_2", group_size=32, target_modules=QK), 16),
    Case("ROAD", "llama", dict(variant="road_4", group_size=2, target_modules=TWO), 16),
    Case("ROAD", "llama", dict(variant="road_1", group_size=256, target_modules=["q_proj"]), 16),
    Case("SHIRA", "llama", dict(r=2, target_modules=THREE), 0, ALL),
    Case("SHIRA", "llama", dict(r=9, random_seed=5, target_modules=TWO, modules_to_save=["norm"])),
    Case("SUPERTUNING", "llama", dict(sparsity=0.9, target_modules=THREE), 0, ALL),
    Case("SUPERTUNING", "llama", dict(r=4, lora_alpha=6, select_top=False, target_modules=TWO), 0, ALL),
]
WHOLE = [
    Case("DEFT", "llama", dict(r=8, target_modules=THREE), 0, ALL),
    Case("DEFT", "llama", dict(r=3, alpha=6, init_weights=False, target_modules=TWO), 0),
    Case("DEFT", "llama", dict(r=16, para=True, target_modules=TWO, bias="deft_only"), 0),
    Case("DEFT", "llama", dict(r=8, decomposition_method="qr", target_modules=TWO), 32, ALL),
    Case("DEFT", "gpt2", dict(r=5, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True), 4),
    Case("FOURIERFT", "llama", dict(n_frequency=500, target_modules=THREE), 16, ALL),
    Case("FOURIERFT", "gpt2", dict(n_frequency=100, scaling=40.0, random_loc_seed=5, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True), 16),
    Case("FOURIERFT", "qwen2-odd", dict(n_frequency=64, n_frequency_pattern={"q_proj": 7}, target_modules=["q_proj", "down_proj"]), 16),
    Case("FROD", "llama", dict(target_modules=QK, progressbar=False, sparse_rate=0.02), 16),
    Case("FROD", "gpt2", dict(target_modules=["c_attn"], progressbar=False, fan_in_fan_out=True), 16),
    Case("HRA", "llama", dict(r=8, target_modules=THREE), 32, ALL),
    Case("HRA", "llama", dict(r=5, apply_GS=True, target_modules=TWO, bias="hra_only"), 32),
    Case("OSF", "llama", dict(target_modules=["k_proj"]), 1024, ALL),
    Case("OSF", "llama", dict(effective_rank=100, rank_pattern={"v_proj": 0.9}, target_modules=["k_proj", "v_proj"]), 1024),
    Case("PEANUT", "llama", dict(r=32, target_modules=THREE), 0, ALL),
    Case("PEANUT", "llama", dict(r=8, depth=2, scaling=0.5, target_modules=TWO), 4),
    Case("PEANUT", "llama", dict(r=16, depth=1, act_fn="gelu", target_modules=["q_proj"]), 4),
    Case("PEANUT", "llama", dict(r=16, depth=1, act_fn="silu", target_modules=["q_proj"], layers_to_transform=[0]), 4),
    Case("TINYLORA", "llama", dict(r=2, u=13, init_weights="uniform", target_modules=THREE), 0, ALL),
    Case("TINYLORA", "llama", dict(r=4, weight_tying=0.6, init_weights="uniform", target_modules=["v_proj", "q_proj", "up_proj", "o_proj"])),
    Case("TINYLORA", "llama", dict(r=3, u=5, weight_tying=1.0, init_weights="uniform", target_modules=["embed_tokens", "q_proj"])),
    Case("TINYLORA", "gpt2", dict(r=3, init_weights="uniform", weight_tying=0.3, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)),
    Case("UNILORA", "llama", dict(target_modules=THREE), 0, ALL),
    Case("UNILORA", "llama", dict(r=7, theta_d_length=1000, proj_seed=3, target_modules=["v_proj", "gate_proj"], layers_to_transform=[1])),
    Case("UNILORA", "llama", dict(r=4, save_indices=True, target_modules=TWO, bias="unilora_only"), 0, ALL),
    Case("UNILORA", "gpt2", dict(r=5, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    Case("WAVEFT", "llama", dict(n_frequency=500, target_modules=THREE), 0, ALL),
    Case("WAVEFT", "llama", dict(n_frequency=3000, wavelet_family="db3", scaling=5.0, target_modules=TWO), 16),
    Case("WAVEFT", "qwen2-odd", dict(n_frequency=300, wavelet_family="coif2", target_modules=["q_proj"], bias="all", random_loc_seed=9), 16),
    Case("WAVEFT", "llama", dict(n_frequency=300, use_idwt=False, target_modules=["q_proj"], n_frequency_pattern={"layers.0.*": 20})),
    Case("WAVEFT", "gpt2", dict(n_frequency=200, wavelet_family="sym3", proportional_parameters=True, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True), 16),
    Case("LORA", "llama", dict(r=4, velora_config=dict(num_groups=16), target_modules=TWO), 0, ALL),
    Case("LORA", "llama", dict(r=4, monteclora_config=dict(), target_modules=TWO), 0, ALL),
    Case("LORA", "llama", dict(r=4, kasa_config=dict(), target_modules=["k_proj", "v_proj"], rank_pattern={"k_proj": 2}), 1024, ALL),
    Case("LORA", "llama", dict(r=8, use_bdlora=dict(target_modules_bd_a=["q_proj"], target_modules_bd_b=["k_proj"], nblocks=2, match_strict=False), target_modules=THREE), 0, ALL),
]
CASES = PLAIN + WHOLE


def config_of(case):
    return PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(case.kind)](task_type="CAUSAL_LM", **case.settings)


def randomise(model):
    """Values that no initialisation leaves: noise on what is there, so that what is near 1 stays near it."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                scale = 0.5 if "road_theta" in name else 0.02 if ".osf_" in name or ".frod_" in name else 0.1
                value.copy_(value + scale * torch.randn(value.shape))


def limit_16(case):
    """How many units in the last place a value of a 16-bit type may be off."""
    return 4 if case.kind in ("FROD", "OSF") or "kasa_config" in case.settings else 1


def title(case):
    settings = ", ".join(f"{name}={value}" for name, value in case.settings.items() if name != "target_modules")
    return f"{case.kind} {settings} ({case.base})"


def run_case(number, case, dtype):
    base, adapter, out = base_folder(case.base, dtype), WORK / f"{case.kind}-{number}-{dtype}", WORK / "merged"
    torch.manual_seed(zlib.crc32(title(case).encode()))
    model = peft.get_peft_model(load(base, dtype), config_of(case))
    randomise(model)
    model.save_pretrained(adapter)
    if dtype == "f16":                  # an adapter in another type
        file = adapter / "adapter_model.safetensors"
        values = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in load_file(file).items()}
        save_file(values, file, {"format": "pt"})
    peft.PeftModel.from_pretrained(load(base, dtype), adapter).merge_and_unload().save_pretrained(WORK / "peft")
    expected = tensors(WORK / "peft")
    shutil.rmtree(WORK / "peft")
    atombank("merge", base, adapter, "-o", out, "--quiet")
    passed, line = same_weights(case.units if dtype == "f32" else min(case.units, limit_16(case)), base, tensors(out), expected)
    check(f"{title(case)} {dtype}", passed, line)
    shutil.rmtree(out)
    if passed:
        shutil.rmtree(adapter)


warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
WORK.mkdir(parents=True, exist_ok=True)
for number, case in enumerate(CASES):
    for dtype in case.dtypes if not ONLY or case.kind in ONLY else ():
        guarded(f"{title(case)} {dtype}", lambda: run_case(number, case, dtype))
finish("kinds")
