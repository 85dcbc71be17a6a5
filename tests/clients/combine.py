"""Combines LoRAs with atombank by every method of PEFT's add_weighted_adapter, and compares with PEFT.

    python combine.py ATOMBANK_BINARY WORK_DIR

Both as a LoRA of its own, whose updates are compared, and merged into the base, whose weights are. Where values are
taken by chance both draw with the same seed. Each check prints a line; the last line counts them. Exit code 1 where one
failed.
"""
import shutil
import warnings

import peft
import torch
import transformers

from common import FIXTURES, WORK, atombank, check, finish

TYPES = ["linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd",
         "magnitude_prune", "magnitude_prune_svd"]
DENSITY, SEED = 0.6, 7
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FEEDFORWARD = ["gate_proj", "up_proj", "down_proj"]
NEAR = 2e-6                             # of a tensor's largest value

# Base: the settings of two LoRAs. The second has modules that the first hasn't, and the other way round.
CASES = {
    "llama": [dict(r=4, lora_alpha=8, target_modules=ATTENTION + ["down_proj"]),
              dict(r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj"] + FEEDFORWARD)],
    "qwen2": [dict(r=3, lora_alpha=8, target_modules=ATTENTION), dict(r=3, lora_alpha=3, target_modules=ATTENTION + FEEDFORWARD)],
    "gpt2": [dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
             dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)],
    "gemma": [dict(r=4, lora_alpha=8, target_modules=ATTENTION + ["embed_tokens"]), dict(r=4, lora_alpha=4, target_modules=ATTENTION)],
}
WEIGHTS = [1.0, 0.5]


def load(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()


def make_adapter(base, seed, settings, folder):
    torch.manual_seed(seed)
    model = peft.get_peft_model(load(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, value in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.15)
    model.save_pretrained(folder, save_embedding_layers=False)


def updates(model, adapter):
    """What a LoRA adds to each module's weight."""
    with torch.no_grad():
        return {name: module.get_delta_weight(adapter) for name, module in model.base_model.model.named_modules()
                if isinstance(module, peft.tuners.lora.LoraLayer) and (adapter in module.lora_A or adapter in module.lora_embedding_A)}


def furthest(found, expected):
    """The largest difference, as a share of the largest value of its tensor, and where."""
    if set(found) != set(expected):
        return float("inf"), f"only one has {sorted(set(found) ^ set(expected))[:3]}"
    gaps = {name: float((found[name] - value).abs().max() / value.abs().max()) for name, value in expected.items()}
    where = max(gaps, key=lambda name: gaps[name] if gaps[name] == gaps[name] else float("inf"))
    return gaps[where], where


def compare(name, found, expected):
    gap, where = furthest(found, expected)
    check(name, gap <= NEAR, f"{gap:.1e} of the largest value in {where}, {len(expected)} tensors")


def run(base_name, method):
    base, folder = FIXTURES / "convert" / base_name / "model", WORK / base_name
    model = peft.PeftModel.from_pretrained(load(base), folder / "one", adapter_name="one")
    model.load_adapter(folder / "two", adapter_name="two")
    torch.manual_seed(SEED)
    model.base_model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", combination_type=method, density=DENSITY)
    expected = updates(model, "sum")
    args = ["merge", base, *(f"{folder / name}={weight}" for name, weight in zip(["one", "two"], WEIGHTS)), "--method", method,
            "--density", DENSITY, "--seed", SEED, "--type", "f32", "--quiet"]
    lora, merged = folder / f"{method}-lora", folder / f"{method}-merged"
    atombank(*args, "--to", "lora", "-o", lora)
    compare(f"{base_name}: {method}, a LoRA", updates(peft.PeftModel.from_pretrained(load(base), lora), "default"), expected)
    atombank(*args, "-o", merged)
    model.set_adapter("sum")
    weights = dict(load(merged).state_dict())
    wanted = {key: value for key, value in model.merge_and_unload(adapter_names=["sum"]).state_dict().items()}
    compare(f"{base_name}: {method}, merged", weights, wanted)
    shutil.rmtree(lora)
    shutil.rmtree(merged)


def main():
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    WORK.mkdir(parents=True)
    for base, settings in CASES.items():
        for seed, (name, fields) in enumerate(zip(["one", "two"], settings)):
            make_adapter(FIXTURES / "convert" / base / "model", seed, fields, WORK / base / name)
        for method in TYPES:
            try:
                run(base, method)
            except Exception as error:          # the others are still of interest
                check(f"{base}: {method}", False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    finish("combine")


main()
