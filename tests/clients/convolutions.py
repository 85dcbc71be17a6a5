"""Merges adapters on convolutions with atombank, and the same with PEFT and LyCORIS.

    python convolutions.py ATOMBANK_BINARY WORK_DIR [SEEDS [KIND ...]]

Nets of random convolutions of one, two and three dimensions, grouped, dilated and with strides, get adapters of every kind
that PEFT merges on them, with random values and settings. The merged weights have to be those of `merge_and_unload`, bit by
bit; for LyCORIS, they have to be those that it multiplies with while the adapter is on. Two things differ by units in the last place of a tensor's largest value: rotations for which torch solves (OFT without
a series, BOFT), and what MKL multiplies in an order of its own, for a few small sizes: of those, one value in a hundred at
most may be off. Each check says how many are. The last line counts the checks. Exit code 1 where one failed.
"""
import json
import random
import sys
import warnings

import peft
import torch
from common import WORK, atombank, check, finish
from lycoris_network import in_use, network_of
from safetensors.torch import load_file, save_file

SEEDS = int(sys.argv[3]) if len(sys.argv) > 3 else 6
# Kinds after the number of seeds: only these.
CHOSEN = sys.argv[4:]
KINDS = ["lora", "dora", "rslora", "loha", "loha-tucker", "lokr", "lokr-tucker", "ia3", "oft", "oft-solved", "boft"]
LYCORIS = ["locon", "locon-tucker", "loha", "loha-tucker", "lokr", "lokr-tucker", "full", "glora", "ia3", "norms"]
warnings.filterwarnings("ignore")


def net(rng, kind):
    """A net of convolutions that the kind supports, and the names of its layers."""
    layers = {}
    dims = {"boft": [2], "oft": [2], "oft-solved": [2], "ia3": [2, 3]}.get(kind, [1, 2] if kind.startswith("lo") and kind[2] in "hk" else [1, 2, 3])
    grouped = kind.startswith(("loha", "lokr", "ia3"))
    square = kind.startswith(("oft", "boft"))
    for number in range(4):
        dim = rng.choice(dims)
        taps = [rng.choice([1, 2, 3, 5])] * dim if square else [rng.choice([1, 2, 3, 4]) for _ in range(dim)]
        if dim == 3 and taps[:2] == [1, 1] and kind.endswith("ora"):
            taps[0] = 2  # PEFT takes such a kernel for one of a single tap, and fails
        groups = rng.choice([1, 2, 4]) if grouped else 1
        inputs, outputs = groups * rng.choice([2, 3, 8, 16]), groups * rng.choice([12, 16, 20])
        if square:
            inputs = rng.choice([4, 8, 16])
        more = dict(stride=rng.choice([1, 2]), padding=rng.choice([0, 1]), bias=rng.random() < 0.5, groups=groups)
        if not square:
            more["dilation"] = rng.choice([1, 2])
        layers[f"conv{number}"] = getattr(torch.nn, f"Conv{dim}d")(inputs, outputs, tuple(taps), **more)
    layers["linear"] = torch.nn.Linear(rng.choice([8, 16]), rng.choice([4, 12, 20]))
    return torch.nn.ModuleDict({"block": torch.nn.ModuleDict(layers)})


def settings(rng, kind):
    """The adapter's config."""
    targets = [f"conv{n}" for n in range(4)] + ["linear"]
    if kind in ("lora", "dora", "rslora"):
        return peft.LoraConfig(r=rng.choice([1, 2, 4, 8, 16]), lora_alpha=rng.choice([1, 3, 8]), target_modules=targets,
                               init_lora_weights=False, use_dora=kind == "dora", use_rslora=kind == "rslora")
    tucker = kind.endswith("tucker")
    if kind.startswith("loha"):
        return peft.LoHaConfig(r=rng.choice([1, 2, 4, 8]), alpha=rng.choice([1, 3, 8]), target_modules=targets, init_weights=False,
                               use_effective_conv2d=tucker)
    if kind.startswith("lokr"):
        return peft.LoKrConfig(r=rng.choice([1, 2, 4, 8]), alpha=rng.choice([1, 3, 8]), target_modules=targets, init_weights=False,
                               use_effective_conv2d=tucker, decompose_both=rng.random() < 0.5, decompose_factor=rng.choice([-1, 2, 4]))
    if kind == "ia3":
        return peft.IA3Config(target_modules=targets, feedforward_modules=rng.sample(targets, 2), init_ia3_weights=False)
    if kind == "boft":
        return peft.BOFTConfig(boft_block_size=rng.choice([2, 4]), target_modules=targets, init_weights=False)
    return peft.OFTConfig(r=0, oft_block_size=rng.choice([2, 4]), target_modules=targets, init_weights=False, coft=rng.random() < 0.3,
                          block_share=rng.random() < 0.3, use_cayley_neumann=kind == "oft", num_cayley_neumann_terms=rng.choice([3, 5]))


def distance(a, b):
    """The largest difference in units of the last place of the tensor's largest value, and the number of values off."""
    unit = 2.0 ** (torch.floor(torch.log2(b.abs().max().clamp_min(1e-30))) - 23)
    return float((a - b).abs().max() / unit), int((a != b).sum())


WORK.mkdir(parents=True)
for kind in [kind for kind in KINDS if not CHOSEN or kind in CHOSEN]:
    checked = values = off = failed = 0
    most = 0.0
    for seed in range(SEEDS):
        rng = random.Random(f"{kind} {seed}")
        torch.manual_seed(seed)
        base, adapter, out = WORK / f"{kind}-{seed}-base", WORK / f"{kind}-{seed}", WORK / f"{kind}-{seed}-merged"
        model = net(rng, kind)
        base.mkdir()
        (base / "config.json").write_text(json.dumps({"architectures": ["Net"], "model_type": "net"}))
        save_file(model.state_dict(), base / "model.safetensors")
        adapted = peft.get_peft_model(model, settings(rng, kind))
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name or "boft" in name or "oft_R" in name:
                torch.nn.init.normal_(parameter, 0.5 if "magnitude" in name else 0.0, 0.1)
        adapted.save_pretrained(adapter)
        try:
            expected = adapted.merge_and_unload().state_dict()
        except RuntimeError:
            failed += 1  # PEFT has factors of kernels that it can't multiply
            continue
        atombank("merge", base, adapter, "-o", out)
        found = load_file(out / "model.safetensors")
        assert sorted(found) == sorted(expected)
        for name, tensor in expected.items():
            assert found[name].shape == tensor.shape, name
            far, different = distance(found[name], tensor)
            most, off, values, checked = max(most, far), off + different, values + tensor.numel(), checked + 1
    solved = kind in ("oft-solved", "boft")
    check(kind, most <= (4 if solved else 2) and (solved or off <= values / 100),
          f"{checked} tensors of {SEEDS - failed} nets, {off} of {values} values off, by {most:.2g} units in the last place at most")


def with_lycoris(kind, rng, model):
    """A network on the model with random values, and the weights that it multiplies with."""
    algo, tucker = kind.removesuffix("-tucker"), kind.endswith("tucker")
    more = dict(lora_dim=rng.choice([1, 2, 4, 8]), alpha=rng.choice([1, 3, 8]), use_tucker=tucker)
    more |= dict(conv_lora_dim=rng.choice([1, 2, 4, 8]), conv_alpha=rng.choice([1, 3, 8]))
    if algo not in ("full", "glora", "ia3", "norms"):
        more |= dict(weight_decompose=rng.random() < 0.4, wd_on_out=rng.random() < 0.5)
    if algo == "lokr":
        more |= dict(decompose_both=rng.random() < 0.5, factor=rng.choice([-1, 2, 4]), full_matrix=rng.random() < 0.3)
    if algo == "ia3":
        more = dict(train_on_input=rng.random() < 0.5)
    targets = [f"conv{n}" for n in range(4)] + ["linear"]
    if algo == "norms":
        targets, more["train_norm"] = ["norm0", "norm1", "conv0"], True
    network = network_of(model, {"locon": "lora", "norms": "lora"}.get(algo, algo), targets, more).eval()
    paths = {module: path for path, module in model.named_modules()}
    with torch.no_grad():
        for name, value in network.named_parameters():
            noise = torch.randn(value.shape)
            value.copy_(value * (1 + 0.1 * noise) if "dora_scale" in name else value + 0.1 * noise if algo in ("full", "ia3") else 0.3 * noise)
    expected = {}
    for lora in network.loras:
        module = lora.org_module[0]
        if algo == "full":
            expected |= {f"{paths[module]}.{part}": value.detach() for part in ("weight", "bias") if (value := getattr(lora, part)) is not None}
            continue
        expected |= {f"{paths[module]}.{part}": value for part, value in in_use(lora).items()}
    return network, expected


for kind in [kind for kind in LYCORIS if not CHOSEN or f"LyCORIS-{kind}" in CHOSEN]:
    checked = values = off = 0
    most = 0.0
    for seed in range(SEEDS):
        rng = random.Random(f"lycoris {kind} {seed}")
        torch.manual_seed(seed)
        base, adapter, out = WORK / f"ly-{kind}-{seed}-base", WORK / f"ly-{kind}-{seed}.safetensors", WORK / f"ly-{kind}-{seed}-merged"
        model = net(rng, {"glora": "lora", "ia3": "dora"}.get(kind, "lokr" if kind.startswith("lo") else "ia3"))
        if kind == "norms":
            # LyCORIS tunes no batch norms; their buffers stay as they are.
            model["block"].update({"norm0": torch.nn.GroupNorm(2, 8), "norm1": torch.nn.LayerNorm(7), "batch": torch.nn.BatchNorm2d(6)})
        base.mkdir()
        (base / "config.json").write_text(json.dumps({"architectures": ["Net"], "model_type": "net"}))
        whole = {name: value.clone() for name, value in model.state_dict().items()}
        save_file(whole, base / "model.safetensors")
        network, expected = with_lycoris(kind, rng, model)
        network.save_weights(adapter, torch.float32, None)
        atombank("merge", base, adapter, "-o", out)
        found = load_file(out / "model.safetensors")
        for name, tensor in whole.items():
            tensor = expected.get(name, tensor)
            assert found[name].shape == tensor.shape, name
            far, different = distance(found[name], tensor)
            most, off, values, checked = max(most, far), off + different, values + tensor.numel(), checked + 1
    # A whole update is saved as a difference, which rounds. MKL has an order of its own for GLoRA's products of rank 1.
    check(f"LyCORIS {kind}", most <= 2 and (kind in ("full", "glora") or off <= values / 50),
          f"{checked} tensors of {SEEDS} nets, {off} of {values} values off, by {most:.2g} units in the last place at most")
finish("convolutions")
