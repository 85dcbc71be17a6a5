"""Combines whole models with mergekit and with atombank: every method, with parameters of its own.

    python mergekit_methods.py ATOMBANK_BINARY WORK_DIR

The models are random Llamas in float32. Their embeddings are large enough for arcee_fusion to take its quartiles of a
sample. Both programs write float32, with the same seed. A value may differ by 1e-6 of its tensor's largest value. mergekit
computes in float32 and, where angles and lengths of whole tensors decide, in float64: the sums of its float32 are off by
up to 2e-5 themselves, which is printed. Where values are ranked, one of a hundred thousand may be taken by one program
alone: mergekit's sorts leave the order of equal magnitudes open, and in arcee_fusion MKL's logarithm isn't rounded
correctly. In 16 bits, mergekit rounds after every operation, and so does atombank: spherical methods have mergekit's bits but
for lengths and angles of large tensors: torch sums them in float32, in an order that depends on the processor, so that some are
rounded to another number: in a million values torch is off by a thousandth. Then the values of that tensor are a few units of
its largest value apart. Each check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import logging
import random

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from common import WORK, atombank, check, finish

LIMIT, TAKEN = 1e-6, 1e-5
# In 16 bits: units in the last place of a tensor's largest value, and how many tensors may differ at all.
UNITS, OTHERS = 4, 0.25
UNIT = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
CONFIG = LlamaConfig(hidden_size=128, intermediate_size=350, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                     vocab_size=8200, max_position_embeddings=64, tie_word_embeddings=False, architectures=["LlamaForCausalLM"])
PRECISE = ["slerp", "nuslerp", "multislerp", "model_stock", "karcher"]
RANKED = ("ties", "breadcrumbs", "della", "sce", "arcee_fusion")
NAMES = {"normalize_weights": "normalize", "eps": "epsilon"}        # mergekit's options, ours
# Name: method, models, whether mergekit has a base, parameters of all together and of each.
CASES = {
    "linear": ("linear", "abc", False, {}, {"weight": [0.5, 0.3, -0.1]}),
    "slerp": ("slerp", "a", True, {"t": 0.35}, {}),
    "nuslerp": ("nuslerp", "ab", False, {}, {"weight": [0.4, 0.9]}),
    "nuslerp-rows": ("nuslerp", "ab", True, {"nuslerp_flatten": False}, {"weight": [0.4, 0.9]}),
    "multislerp": ("multislerp", "abc", False, {}, {"weight": [0.4, 0.9, 0.2]}),
    "multislerp-updates": ("multislerp", "abc", True, {"normalize_weights": False, "eps": 1e-6}, {"weight": [0.4, 0.2, 0.3]}),
    "task_arithmetic": ("task_arithmetic", "abc", True, {"lambda": 0.7}, {"weight": [0.5, 0.3, -0.1]}),
    "ties": ("ties", "abc", True, {}, {"weight": [0.5, 0.3, 0.4], "density": [0.4, 0.6, 0.5]}),
    "dare_ties": ("dare_ties", "abc", True, {"seed": 5}, {"weight": [0.5, 0.3, 0.4], "density": [0.4, 0.6, 0.5]}),
    "dare_linear": ("dare_linear", "ab", True, {"seed": 6}, {"weight": [0.5, -0.3], "density": [0.2, 0.9]}),
    "breadcrumbs": ("breadcrumbs", "ab", True, {"gamma": 0.05}, {"weight": [0.5, 0.6], "density": [0.3, 0.8]}),
    "breadcrumbs_ties": ("breadcrumbs_ties", "ab", True, {}, {"weight": [0.5, 0.6], "density": [0.3, 0.8]}),
    "della": ("della", "abc", True, {"seed": 7, "epsilon": 0.2}, {"weight": [0.5, 0.3, 0.4], "density": [0.4, 0.6, 0.5]}),
    "della_linear": ("della_linear", "ab", True, {"seed": 8}, {"weight": [0.5, 0.3], "density": [0.4, 0.7]}),
    "sce": ("sce", "abc", True, {"select_topk": 0.3}, {}),
    "model_stock": ("model_stock", "abc", True, {}, {}),
    "karcher": ("karcher", "abc", False, {}, {}),
    "nearswap": ("nearswap", "a", True, {"t": 0.004}, {}),
    "arcee_fusion": ("arcee_fusion", "a", True, {"seed": 9}, {}),
    "arcee_fusion-near": ("arcee_fusion", "n", True, {"seed": 10}, {}),
    "ram": ("ram", "abcn", True, {"epsilon": 0.008}, {}),
    "ram-all": ("ram", "abc", True, {}, {}),
    "ramplus_tl": ("ramplus_tl", "abc", True, {"epsilon": 0.008, "r": 0.4, "alpha": 1.5}, {}),
    "passthrough": ("passthrough", "a", False, {"scale": 1.3}, {}),
}


def make_models():
    torch.manual_seed(1)
    base = {name: 0.05 * torch.randn(value.shape) for name, value in LlamaForCausalLM(CONFIG).state_dict().items()}
    common = {name: torch.randn(value.shape) for name, value in base.items()}
    models = {"base": base, "n": {name: value + 1e-4 * torch.randn(value.shape) for name, value in base.items()}}
    for model in "abc":
        models[model] = {name: value + 0.01 * (common[name] + torch.randn(value.shape)) for name, value in base.items()}
    for model, tensors in models.items():
        CONFIG.save_pretrained(WORK / model)
        save_file(tensors, WORK / model / "model.safetensors", {"format": "pt"})


def configuration(method, models, has_base, shared, each, dtype, out_dtype):
    of = [{"model": str(WORK / model), "parameters": {name: values[i] for name, values in each.items()}} for i, model in enumerate(models)]
    return {"merge_method": method, "models": of, "parameters": shared, "dtype": dtype, "out_dtype": out_dtype,
            **({"base_model": str(WORK / "base")} if has_base else {})}


def by_mergekit(method, models, has_base, shared, each, dtype, out):
    shared = dict(shared)
    seed = shared.pop("seed", None)
    config = configuration(method, models, has_base, shared, each, dtype, "float32")
    run_merge(MergeConfiguration.model_validate(config), str(out),
              MergeOptions(random_seed=seed, copy_tokenizer=False, write_model_card=False, quiet=True))


def by_atombank(method, models, has_base, shared, each, out):
    weights = each.get("weight")
    args = [f"{WORK / model}={weights[i]}" if weights else WORK / model for i, model in enumerate(models)]
    options = {NAMES.get(name, name): value for name, value in shared.items()}
    options |= {"density": ",".join(map(str, each["density"]))} if "density" in each else {}
    flags = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value).lower())]
    flags += [f"--{method}-updates"] if has_base and method in ("nuslerp", "multislerp") else []
    atombank("merge", WORK / "base", *args, "--method", method, *flags, "-o", out)


def run(case, method, models, has_base, shared, each):
    merged = {}
    for dtype in ["float32", "float64"] if method in PRECISE else ["float32"]:
        by_mergekit(method, models, has_base, shared, each, dtype, WORK / f"{case}-{dtype}")
        expected = merged[dtype] = load_file(WORK / f"{case}-{dtype}" / "model.safetensors")
    by_atombank(method, models, has_base, shared, each, WORK / f"{case}-atombank")
    found = load_file(WORK / f"{case}-atombank" / "model.safetensors")
    if set(found) != set(expected):
        return check(case, False, f"other tensors: {sorted(set(found) ^ set(expected))[:3]}")
    furthest, far, other, total = compared(found, expected)
    passed = far <= (TAKEN * total if method.startswith(RANKED) else 0)
    own = f"; mergekit's float32 is off by {compared(merged['float32'], expected)[0]:.1e}" if len(merged) > 1 else ""
    check(case, passed, f"furthest {furthest:.1e}, {far} of {total} values beyond the limit, {other} with other bits{own}")


def run_narrow(case, config):
    """Merges by one file in 16 bits. Distances are in units in the last place of each tensor's largest value."""
    file = WORK / f"{case}.yml"
    file.write_text(yaml.dump(config, sort_keys=False))
    run_merge(MergeConfiguration.model_validate(config), str(WORK / f"{case}-mergekit"),
              MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))
    atombank("merge", "--config", file, "-o", WORK / f"{case}-atombank")
    expected, found = (load_file(WORK / f"{case}-{by}" / "model.safetensors") for by in ("mergekit", "atombank"))
    furthest, other, tensors = 0.0, 0, 0
    for name, tensor in expected.items():
        one, two = tensor.float(), found[name].float()
        furthest = max(furthest, float((one - two).abs().max() / one.abs().max()) / UNIT[tensor.dtype])
        other, tensors = other + int((one != two).sum()), tensors + bool((one != two).any())
    total = sum(tensor.numel() for tensor in expected.values())
    check(case, set(found) == set(expected) and furthest <= UNITS and tensors <= OTHERS * len(expected),
          f"{config['parameters']} furthest {furthest:.2f} units, {other} of {total} values in {tensors} of {len(expected)} tensors differ")


def compared(found, expected):
    """The largest difference, in units of the largest value of its tensor; how many values are beyond the limit and how many
    differ at all, of how many."""
    furthest, far, other, total = 0.0, 0, 0, 0
    for name, tensor in expected.items():
        gaps = (found[name] - tensor).abs() / tensor.abs().max().clamp(min=1e-30)
        furthest, far = max(furthest, float(gaps.max())), far + int((gaps > LIMIT).sum())
        other, total = other + int((found[name] != tensor).sum()), total + tensor.numel()
    return furthest, far, other, total


logging.disable(logging.WARNING)
torch.set_num_threads(1)
WORK.mkdir(parents=True)
make_models()
for case, values in CASES.items():
    try:
        run(case, *values)
    except Exception as error:
        check(case, False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
random.seed(3)
for number in range(4):
    for dtype in ("bfloat16", "float16"):
        for method in ("nuslerp", "multislerp"):
            has_base, models = random.random() < 0.5, random.sample("abcn", 2 if method == "nuslerp" else random.choice([2, 3, 4]))
            each = {"weight": [round(random.uniform(0.1, 1), 3) for _ in models]}
            shared = {"nuslerp_row_wise": True, "nuslerp_flatten": False} if method == "nuslerp" else {"normalize_weights": random.random() < 0.7}
            case = f"{method}-{dtype}-{number}{'-updates' if has_base else ''}"
            try:
                run_narrow(case, configuration(method, models, has_base, shared, each, dtype, dtype))
            except Exception as error:
                check(case, False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
finish("mergekit_methods")
