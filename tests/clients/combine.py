"""Makes LoRA adapters with PEFT and combines them with atombank and with PEFT's add_weighted_adapter.

    python combine.py ATOMBANK_BINARY WORK_DIR

Merged into the base, and as an adapter of its own, what atombank makes has to be what PEFT makes after
torch.manual_seed, to 1e-6 of each tensor's largest value. Factors that are cut to a rank by singular values are compared
by their product: the signs of singular vectors are arbitrary. torch takes them in float64 for these checks: in float32,
as PEFT has it, they are off by several 1e-6 themselves, which is checked to 1e-5. Each check prints a line; the last line
counts them. Exit code 1 where one failed.
"""
import peft
import torch
from safetensors.torch import load_file

from common import FIXTURES, WORK, atombank, check, finish, load_hf

LIMIT, SINGLE = 1e-6, 1e-5              # with singular values in float64, and in float32
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# Name: base, rank and alpha of each adapter, other fields of their configs.
BASES = {
    "llama": ("llama", [(4, 8), (4, 6)], dict(target_modules=ATTENTION + ["gate_proj", "up_proj", "down_proj"])),
    "ranks": ("llama", [(4, 8), (2, 6), (3, 3)], dict(target_modules=ATTENTION + ["down_proj"])),
    "embeddings": ("llama", [(4, 8), (4, 4)], dict(target_modules=["embed_tokens", "q_proj"])),
    "positions": ("gpt2", [(4, 8), (4, 4)], dict(target_modules=["wpe", "c_attn"])),
    "conv1d": ("gpt2", [(4, 8), (4, 4)], dict(target_modules=["c_attn", "c_fc", "c_proj"])),
    "qwen3": ("qwen3", [(4, 8), (4, 6)], dict(target_modules=["q_proj", "o_proj", "up_proj"])),
}
# Adapters of few different values, as those kept in 16 bits are: many have the magnitude at the edge of what is kept.
COARSE = ["ranks", "qwen3"]
# Name: base, method, weights, options.
CASES = {
    "linear": ("llama", "linear", [1.0, 0.5], {}),
    "linear-negative": ("llama", "linear", [1.0, -0.5], {}),
    "cat": ("llama", "cat", [1.0, -0.5], {}),
    "cat-ranks": ("ranks", "cat", [1.0, 0.5, -0.3], {}),
    "svd": ("llama", "svd", [1.0, 0.5], {}),
    "svd-ranks": ("ranks", "svd", [1.0, 0.5, -0.3], {"rank": 6}),
    "ties": ("llama", "ties", [1.0, 0.5], {"density": 0.6}),
    "ties-frequency": ("qwen3", "ties", [1.0, -0.5], {"density": 0.3, "majority-sign": "frequency"}),
    "ties_svd": ("ranks", "ties_svd", [1.0, 0.5, -0.3], {"density": 0.4}),
    "dare_linear": ("llama", "dare_linear", [1.0, 0.5], {"density": 0.6, "seed": 7}),
    "dare_linear-conv1d": ("conv1d", "dare_linear", [1.0, 0.5], {"density": 0.6, "seed": 7}),
    "dare_linear_svd": ("ranks", "dare_linear_svd", [1.0, 0.5, -0.3], {"density": 0.6, "seed": 11}),
    "dare_linear_svd-conv1d": ("conv1d", "dare_linear_svd", [1.0, 0.5], {"density": 0.7, "seed": 5}),
    "dare_ties": ("qwen3", "dare_ties", [0.8, 0.5], {"density": 0.5, "seed": 1234567890123}),
    "dare_ties-embeddings": ("embeddings", "dare_ties", [0.8, 0.5], {"density": 0.5, "seed": 3}),
    "dare_ties-positions": ("positions", "dare_ties", [0.8, 0.5], {"density": 0.5, "seed": 3}),
    "dare_ties_svd": ("conv1d", "dare_ties_svd", [0.8, 0.5], {"density": 0.5, "seed": 4}),
    "magnitude_prune": ("llama", "magnitude_prune", [1.0, 0.5], {"density": 0.35}),
    "magnitude_prune_svd": ("ranks", "magnitude_prune_svd", [1.0, 0.5, -0.3], {"density": 0.35}),
}


def make_adapter(base, settings, seed, folder, coarse):
    torch.manual_seed(seed)
    model = peft.get_peft_model(load_hf(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, value in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.1)
            if coarse:
                value.data = (value.data * 32).round() / 32
    model.save_pretrained(folder, save_embedding_layers=False)


def double(svd):
    """torch.linalg.svd in float64, whatever it is given."""
    def wider(of, **options):
        return [part.to(of.dtype) for part in svd(of.double(), **options)]
    return wider


def by_peft(base, adapters, method, weights, options, folder):
    """The combined adapter, saved, and the base with it merged in."""
    names = [f"part-{i}" for i in range(len(adapters))]     # "0" would be part of other names
    model = peft.PeftModel.from_pretrained(load_hf(base), adapters[0], names[0])
    for name, adapter in zip(names[1:], adapters[1:]):
        model.load_adapter(adapter, name)
    torch.manual_seed(options.get("seed", 0))
    model.add_weighted_adapter(names, weights, "sum", combination_type=method,
                               svd_rank=options.get("rank"), density=options.get("density"),
                               majority_sign_method=options.get("majority-sign", "total"))
    model.save_pretrained(folder, selected_adapters=["sum"], save_embedding_layers=False)
    model.set_adapter("sum")
    return load_file(folder / "sum" / "adapter_model.safetensors"), model.merge_and_unload().state_dict()


def furthest(found, expected):
    """The largest difference, in units of the largest value of its tensor, and where it is."""
    gaps = {}
    for name, tensor in found.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape:
            return float("inf"), f"{name}: {tuple(tensor.shape)} for {tuple(wanted.shape)}"
        gaps[name] = float((tensor - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    worst = max(gaps, key=gaps.get)
    return gaps[worst], worst


def products(factors):
    """B A of every module."""
    made = {}
    for name, a in factors.items():
        for mine, other in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if f".{mine}" in name:
                made[name.split(f".{mine}")[0]] = factors[name.replace(mine, other)].double() @ a.double()
    return made


WORK.mkdir(parents=True)
adapters = {}
for name, (base, sizes, settings) in BASES.items():
    adapters[name] = [WORK / f"{name}-{i}" for i in range(len(sizes))]
    for i, (r, alpha) in enumerate(sizes):
        make_adapter(FIXTURES / "convert" / base / "model", dict(r=r, lora_alpha=alpha, **settings), i, adapters[name][i], name in COARSE)
for case, (name, method, weights, options) in CASES.items():
    base = FIXTURES / "convert" / BASES[name][0] / "model"
    svd = torch.linalg.svd
    if method.endswith("svd"):
        single, _ = by_peft(base, adapters[name], method, weights, options, WORK / f"{case}-single")
        torch.linalg.svd = double(svd)
    factors, merged = by_peft(base, adapters[name], method, weights, options, WORK / f"{case}-peft")
    torch.linalg.svd = svd
    weighted = [f"{adapter}={weight}" for adapter, weight in zip(adapters[name], weights)]
    flags = [text for option, value in options.items() for text in (f"--{option}", str(value))]
    atombank("merge", base, *weighted, "--method", method, *flags, "--type", "f32", "-o", WORK / f"{case}-merged")
    # Buffers and weights that are there twice are not in every file.
    found = {n: t for n, t in load_file(WORK / f"{case}-merged" / "model.safetensors").items()}
    names = {n: next((m for m in (n, f"transformer.{n}", f"model.{n}") if m in merged), None) for n in found}
    found = {names[n]: t for n, t in found.items() if names[n]}
    gap, worst = furthest(found, merged)
    check(f"{case}: merged", len(found) > 10 and gap <= LIMIT, f"{len(found)} tensors, furthest {gap:.1e} ({worst})")
    atombank("merge", base, *weighted, "--method", method, *flags, "--to", "lora", "-o", WORK / f"{case}-lora")
    found = load_file(WORK / f"{case}-lora" / "adapter_model.safetensors")
    if method.endswith("svd"):
        found, factors = products(found), products(factors)
        gap, worst = furthest(found, products(single))
        check(f"{case}: adapter, float32", gap <= SINGLE, f"furthest {gap:.1e} ({worst})")
    gap, worst = furthest(found, factors)
    check(f"{case}: adapter", set(found) == set(factors) and gap <= LIMIT, f"{len(found)} tensors, furthest {gap:.1e} ({worst})")
finish("combine")
