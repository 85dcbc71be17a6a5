"""Decomposes and bakes convolutions of torch with atombank, and computes with both.

    python filter_atoms.py ATOMBANK_BINARY WORK_DIR [SEEDS]

Nets of random convolutions of one, two and three dimensions, grouped and transposed, are decomposed, and their atoms are
exchanged. What torch's own layers compute with the baked kernels, with the three plain convolutions, and with dilated
atoms has to be what they compute with kernels that follow in f64 from the bank's file. The last line counts the checks.
Exit code 1 where one failed.
"""
import json
import random
import sys

import torch
from common import WORK, atombank, check, finish
from safetensors.torch import load_file, save_file

SEEDS = int(sys.argv[3]) if len(sys.argv) > 3 else 4
CONV = torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d
TURNED = torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d
worst = {}


def net(rng):
    """Convolutions by name; those called `turned` are transposed."""
    layers = {}
    for number in range(5):
        dims = rng.choice([1, 2, 3])
        taps = [rng.choice([1, 2, 3, 4, 5]) for _ in range(dims)]
        taps[rng.randrange(dims)] = rng.choice([2, 3, 5])
        turned, groups = number == 4, rng.choice([1, 1, 2])
        layers[f"turned{number}" if turned else f"conv{number}"] = (TURNED if turned else CONV)[dims - 1](
            groups * rng.choice([1, 3, 4]), groups * rng.choice([2, 5]), tuple(taps), groups=groups,
            stride=rng.choice([1, 2]), padding=rng.choice([0, 1]), bias=rng.random() < 0.5)
    return torch.nn.ModuleDict(layers)


def kernels(bank):
    """The kernels of a bank in f64, by module."""
    config = json.loads((bank / "adapter_config.json").read_text())
    tensors = {name: value.double() for name, value in load_file(bank / "adapter_model.safetensors").items()}
    made = {}
    for module, layer in config["layers"].items():
        size = "x".join(map(str, layer["kernel"][:1] if layer["dims"] == 1 else layer["kernel"][3 - layer["dims"]:]))
        atoms = [tensors.get(f"filter_atoms.{size}.{part}" if config["shared"] else f"base_model.model.{module}.filter_atoms.{part}")
                 for part in ("temporal", "spatial")]
        equation = {1: "oik,kt->oit", 2: "oij,jhw->oihw", 3: "oikj,kt,jhw->oithw"}[layer["dims"]]
        made[module] = torch.einsum(equation, tensors[f"base_model.model.{module}.filter_atoms.coefficients"], *(a for a in atoms if a is not None))
    return made


def note(name, found, expected):
    """Keeps the largest difference, as a share of the largest value."""
    gap = float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30))
    worst[name] = max(worst.get(name, 0.0), gap)


def inputs(conv):
    return torch.randn(2, conv.in_channels, *[11] * (conv.weight.dim() - 2))


def three(conv, weights, bias):
    """The three plain convolutions in the place of `conv`."""
    groups, kind = conv.groups, CONV[conv.weight.dim() - 3]
    layers = []
    for part in "012":
        if (weight := weights.get(part)) is None:
            continue
        is_last = part == "2"
        axes = [size > 1 for size in weight.shape[2:]]
        pick = lambda values, other: tuple(v if used else other for v, used in zip(values, axes))
        taps = dict(stride=pick(conv.stride, 1), padding=pick(conv.padding, 0)) if not is_last else {}
        channels = weight.shape[1] * groups if is_last else weight.shape[0] if not layers else layers[-1].out_channels
        inputs = channels if is_last else conv.in_channels if not layers else layers[-1].out_channels
        layer = kind(inputs, weight.shape[0], weight.shape[2:], groups=groups if is_last else inputs, bias=is_last and bias is not None, **taps)
        layer.weight.data = weight
        if layer.bias is not None:
            layer.bias.data = bias
        layers.append(layer)
    # Axes of one tap keep their stride and padding in the layer that has them, here the first.
    return torch.nn.Sequential(*layers)


WORK.mkdir(parents=True)
for seed in range(SEEDS):
    rng = random.Random(f"filter atoms {seed}")
    torch.manual_seed(seed)
    model, at = net(rng), lambda name: WORK / f"{seed}-{name}"
    save_file(model.state_dict(), at("net.safetensors"))
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, at("net.pth.tar"))
    shared = ["--shared"] if rng.random() < 0.5 else []
    for name, choice in [("all", []), ("some", ["--energy", "0.9"])]:
        bank, out = at(f"bank-{name}"), at(f"{name}.safetensors")
        atombank("bank", "decompose", at("net.pth.tar"), "--key", "state_dict", "-o", bank, *choice, *shared)
        atombank("bake", at("net.safetensors"), bank, "-o", out)
        baked, of_bank = load_file(out), kernels(bank)
        assert list(baked) == list(load_file(at("net.safetensors")))
        for module, conv in model.items():
            kernel = of_bank.get(module)
            if kernel is None:
                assert conv.weight[0, 0].numel() == 1 and torch.equal(baked[f"{module}.weight"], conv.weight)
                continue
            note(f"baked kernels, {name} atoms", baked[f"{module}.weight"], kernel)
            if name == "all":
                note("all atoms give the kernels back", baked[f"{module}.weight"], conv.weight.detach())
    # Three convolutions compute what the dense one does.
    bank, out = at("bank-some"), at("three.pt")
    config = json.loads((bank / "adapter_config.json").read_text())
    for module, layer in config["layers"].items():
        layer["groups"] = model[module].groups
    (bank / "adapter_config.json").write_text(json.dumps(config))
    atombank("bake", at("net.pth.tar"), bank, "--key", "state_dict", "--to", "three-convolutions", "-o", out)
    state, dense = torch.load(out, weights_only=True), load_file(at("some.safetensors"))
    for module, conv in model.items():
        # Of a layer with axes of one tap, strides and paddings of those axes belong to no set of atoms.
        if module not in config["layers"] or module.startswith("turned") or 1 in conv.kernel_size and (set(conv.stride) | {1}) != {1} or 1 in conv.kernel_size and conv.padding[0]:
            continue
        weights = {part: state.get(f"{module}.{part}.weight") for part in "012"}
        x = inputs(conv)
        with torch.no_grad():
            found = three(conv, weights, state.get(f"{module}.2.bias"))(x)
            conv.weight.data = dense[f"{module}.weight"]
            note("three convolutions", found, conv(x))
    # Dilated atoms are dilated kernels: with padding times the dilation they compute what `dilation` does.
    atombank("bank", "swap", bank, "-o", at("dilated"), *(["--dilate-time", 2] if any("temporal" in n for n in load_file(bank / "adapter_model.safetensors")) else []),
             *(["--dilate-space", 3] if any("spatial" in n for n in load_file(bank / "adapter_model.safetensors")) else []))
    atombank("bake", at("net.safetensors"), at("dilated"), "-o", at("dilated.safetensors"))
    dilated = load_file(at("dilated.safetensors"))
    for module, conv in model.items():
        if module not in config["layers"] or module.startswith("turned"):
            continue
        dims = conv.weight.dim() - 2
        factor = {1: (2,), 2: (3, 3), 3: (2, 3, 3)}[dims]
        function = getattr(torch.nn.functional, f"conv{dims}d")
        x = torch.randn(1, conv.in_channels, *[17] * dims)
        with torch.no_grad():
            with_option = function(x, dense[f"{module}.weight"], dilation=factor, groups=conv.groups)
            note("dilated atoms", function(x, dilated[f"{module}.weight"], groups=conv.groups), with_option)
        gaps = torch.zeros_like(dilated[f"{module}.weight"])
        gaps[(..., *(slice(None, None, step) for step in factor))] = dense[f"{module}.weight"]
        note("dilated kernels exactly", dilated[f"{module}.weight"], gaps)
    # Other atoms for the base's coefficients.
    adapter, scale = at("adapter"), rng.choice([1.0, 0.5])
    adapter.mkdir()
    stored = load_file(bank / "adapter_model.safetensors")
    config |= dict(mode="atoms", scale=scale)
    tensors = {}
    for name, value in stored.items():
        if name.endswith(("temporal", "spatial")):
            start, part = name.rsplit(".", 1)
            tensors |= {f"{start}.base_{part}": value, name: value + 0.1 * torch.randn_like(value)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, adapter / "adapter_model.safetensors")
    atombank("merge", at("net.safetensors"), adapter, "-o", at("merged.safetensors"))
    merged, base = load_file(at("merged.safetensors")), load_file(at("net.safetensors"))
    for module, layer in config["layers"].items():
        dims, w = layer["dims"], base[f"{module}.weight"].double()
        size = "x".join(map(str, layer["kernel"][:1] if dims == 1 else layer["kernel"][3 - dims:]))
        start = f"filter_atoms.{size}." if config["shared"] else f"base_model.model.{module}.filter_atoms."
        taps = lambda before: torch.kron(*(tensors[f"{start}{before}{part}"].double().flatten(1) if f"{start}{before}{part}" in tensors else torch.ones(1, 1).double()
                                           for part in ("temporal", "spatial")))
        old, new = taps("base_"), taps("")
        rows = w.flatten(2) + scale * (w.flatten(2) @ torch.linalg.pinv(old)) @ (new - old)
        note("adapters of atoms", merged[f"{module}.weight"].flatten(2), rows)
for name, gap in worst.items():
    check(name, gap <= (0 if "exactly" in name else 1e-6), f"{gap:.1e} of the largest value over {SEEDS} nets")
finish("filter atoms")
