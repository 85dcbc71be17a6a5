"""Merges adapters into models of float64 with atombank, and the same with PEFT, which then computes in float64.

    python doubles.py ATOMBANK_BINARY WORK_DIR [SEEDS [KIND ...]]

Nets of linear layers, embeddings, Conv1D and convolutions get adapters of every kind that is computed in float64, with
random values, settings and sizes, saved in float64 or float32. The merged weights have to be those of
`merge_and_unload`, bit by bit. MKL sums a few small sizes in an order of its own (an odd number of columns beside tiles of
twelve, which kernels of 5 or 9 taps are): there, values may be off by units in the last place, one in a thousand at most, of
convolutions one in a hundred, and each check says how many are. Several adapters, and files of PyTorch as bases, are tried
too. The last line counts the checks. Exit code 1 where one failed.
"""
import json
import random
import sys
import warnings

import peft
import torch
from common import WORK, atombank, check, finish
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

SEEDS = int(sys.argv[3]) if len(sys.argv) > 3 else 8
CHOSEN = sys.argv[4:]
KINDS = ["lora", "rslora", "dora", "patterns", "bias", "loha", "lokr", "ia3", "embedding", "conv1d", "whole", "tokens", "convolutions", "several", "pytorch"]
warnings.filterwarnings("ignore")


def size(rng):
    return rng.choice([4, 8, 12, 16, 20, 24, 32, 64, 96, 128, 200])


def net(rng, kind):
    """A net in float64, and the names of its layers."""
    layers = {}
    if kind == "convolutions":
        for number in range(3):
            taps = rng.choice([(1, 1), (1, 1), (3, 3), (2, 2), (5, 1)])
            layers[f"conv{number}"] = torch.nn.Conv2d(rng.choice([4, 8, 16]), rng.choice([12, 16, 24, 48]), taps)
        layers["conv3"] = torch.nn.Conv1d(rng.choice([4, 8, 16]), rng.choice([12, 16, 24]), rng.choice([1, 2, 4]))
    elif kind in ("embedding", "tokens"):
        layers["embed_tokens"] = torch.nn.Embedding(rng.choice([40, 65, 100, 256]), size(rng))
        layers["linear"] = torch.nn.Linear(size(rng), size(rng))
    elif kind == "conv1d":
        layers |= {f"conv1d{number}": Conv1D(size(rng), size(rng)) for number in range(3)}
    else:
        layers |= {f"linear{number}": torch.nn.Linear(size(rng), size(rng)) for number in range(4)}
        layers["norm"] = torch.nn.LayerNorm(size(rng))
    with torch.no_grad():
        model = torch.nn.ModuleDict({"block": torch.nn.ModuleDict(layers)}).double()
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, dtype=torch.float64))
    return model, [name for name in layers if name != "norm"]


def settings(rng, kind, targets):
    r, alpha = rng.choice([1, 2, 3, 4, 7, 8, 16, 32, 64]), rng.choice([1, 3, 7.5, 8, 16])
    if kind == "loha":
        return peft.LoHaConfig(r=r, alpha=alpha, target_modules=targets, init_weights=False)
    if kind == "lokr":
        return peft.LoKrConfig(r=rng.choice([1, 2, 4]), alpha=alpha, target_modules=targets, init_weights=False, decompose_both=rng.random() < 0.5,
                               decompose_factor=rng.choice([-1, 2, 4]))
    if kind == "ia3":
        return peft.IA3Config(target_modules=targets, feedforward_modules=rng.sample(targets, 2), init_ia3_weights=False)
    more = {}
    if kind == "patterns":
        more = dict(rank_pattern={"linear0": 5, "linear[12]": 6}, alpha_pattern={"linear0": 3, "linear2": 11})
    if kind == "bias":
        more = dict(bias="all", lora_bias=rng.random() < 0.5)
    if kind == "whole":
        more = dict(modules_to_save=["norm", "linear3"])
        targets = targets[:3]
    if kind == "tokens":
        more = dict(trainable_token_indices={"embed_tokens": sorted(rng.sample(range(40), 5))})
        targets = ["linear"]
    return peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, init_lora_weights=False, use_dora=kind == "dora" or kind in ("conv1d", "embedding") and rng.random() < 0.4,
                           use_rslora=kind == "rslora", fan_in_fan_out=kind == "conv1d", **more)


def randomise(model):
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                noise = torch.randn(value.shape, dtype=torch.float64)
                value.copy_(value * (1 + 0.1 * noise) if "magnitude" in name else value + 0.3 * noise)


def save_adapter(rng, model, folder):
    """In float64, as PEFT saves it, or rounded to float32."""
    model.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    if rng.random() < 0.4:
        save_file({name: value.float() for name, value in load_file(file).items()}, file, {"format": "pt"})


def distance(a, b):
    """The largest difference in units of the last place of the tensor's largest value, and the number of values off."""
    unit = 2.0 ** (torch.floor(torch.log2(b.abs().max().clamp_min(1e-300))) - 52)
    return float((a - b).abs().max() / unit), int((a != b).sum())


WORK.mkdir(parents=True, exist_ok=True)
for kind in [kind for kind in KINDS if not CHOSEN or kind in CHOSEN]:
    checked = values = off = 0
    most, odd = 0.0, []
    for seed in range(SEEDS):
        rng = random.Random(f"{kind} {seed}")
        torch.manual_seed(seed)
        base, out = WORK / f"{kind}-{seed}-base", WORK / f"{kind}-{seed}-merged"
        base.mkdir()
        model, targets = net(rng, kind)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        (base / "config.json").write_text(json.dumps({"architectures": ["Net"], "model_type": "net"}))
        save_file(state, base / "model.safetensors")
        expected, adapters = dict(state), []
        for number in range(2 if kind == "several" else 1):
            adapter = WORK / f"{kind}-{seed}-{number}"
            adapted = peft.get_peft_model(net(random.Random(f"{kind} {seed}"), kind)[0], settings(rng, kind, targets))
            adapted.base_model.model.load_state_dict({name: value for name, value in state.items()}, strict=False)
            randomise(adapted)
            save_adapter(rng, adapted, adapter)
            adapters.append(adapter)
        fresh = torch.nn.ModuleDict(net(random.Random(f"{kind} {seed}"), kind)[0])
        fresh.load_state_dict(state)
        merged = peft.PeftModel.from_pretrained(fresh, adapters[0], adapter_name="a0")
        for number, adapter in enumerate(adapters[1:], 1):
            merged.load_adapter(adapter, adapter_name=f"a{number}")
        weights = [1.0]
        if kind == "several":
            weights = [rng.choice([0.3, 1.7, -0.6]), rng.choice([0.5, 0.25])]
            for layer in merged.modules():
                if isinstance(layer, peft.tuners.lora.LoraLayer):
                    for number, weight in enumerate(weights):
                        layer.scaling[f"a{number}"] *= weight
        expected = merged.merge_and_unload(adapter_names=[f"a{number}" for number in range(len(adapters))]).state_dict()
        if kind == "pytorch":
            torch.save({"epoch": 3, "model": state}, base / "net.pt")
            out = WORK / f"{kind}-{seed}.pt"
            atombank("merge", base / "net.pt", *adapters, "--key", "model", "-o", out, "--quiet")
            found = torch.load(out)["model"]
        elif kind == "conv1d":
            # Tensors alone, of which the adapter says that their inputs come first.
            out = WORK / f"{kind}-{seed}.safetensors"
            atombank("merge", base / "model.safetensors", *adapters, "-o", out, "--quiet")
            found = load_file(out)
        else:
            joined = [f"{adapter}={weight}" for adapter, weight in zip(adapters, weights)] if kind == "several" else adapters
            atombank("merge", base, *joined, "-o", out, "--quiet")
            found = load_file(out / "model.safetensors")
        assert sorted(found) == sorted(expected), (sorted(found), sorted(expected))
        for name, tensor in expected.items():
            assert found[name].shape == tensor.shape and found[name].dtype == tensor.dtype, name
            far, different = distance(found[name], tensor)
            if different:
                odd.append(f"{name} {list(tensor.shape)} r={getattr(merged.peft_config['a0'], 'r', 0)}: {different}")
            most, off, values, checked = max(most, far), off + different, values + tensor.numel(), checked + 1
    check(kind, off <= values / (100 if kind == "convolutions" else 1000) and most <= 2, f"{checked} tensors, {off} of {values} values off, by {most:.2g} units in the last place at most {odd[:3]}")
finish("doubles")
