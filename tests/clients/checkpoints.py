"""Checkpoints of models that are no transformers: torch.load, strict loading and PEFT's merge, with atombank in between.

    python checkpoints.py BINARY WORK

The skeletons have the structure of public ones, and no forward pass: a message-passing network that registers its
modules twice, and a generator and a diffusion model whose files hold settings, optimizer, schedule and averages.
"""
import sys
import types
import zipfile

import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from common import WORK, atombank, check, finish


class EasyDict(dict):
    """What easydict's class saves: its entries, and the same as attributes."""

    def __init__(self, entries):
        super().__init__()
        for key, value in entries.items():
            self[key] = EasyDict(value) if isinstance(value, dict) else value
            self.__dict__[key] = self[key]


def stand_in(module, cls):
    sys.modules[module] = types.ModuleType(module)
    cls.__module__, cls.__qualname__ = module, cls.__name__
    setattr(sys.modules[module], cls.__name__, cls)


stand_in("easydict", EasyDict)


class Dense(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.linear = nn.Linear(d_in, d_out, bias=False)
        self.weight = self.linear.weight


class Residual(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.dense_mlp = nn.Sequential(Dense(d, d), Dense(d, d))


class OutBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.dense_rbf = Dense(6, d)
        self.scale = nn.Parameter(torch.rand(()))
        self.layers = nn.ModuleList([Dense(d, d), Residual(d)])
        self.seq_energy = self.layers
        self.out_energy = Dense(d, 1)


class Network(nn.Module):
    def __init__(self, d=24):
        super().__init__()
        self.atom_emb = nn.Embedding(93, d)
        self.mlp_cbf = nn.Parameter(torch.randn(3, 6, 4))
        self.out_blocks = nn.ModuleList([OutBlock(d) for _ in range(2)])


class Generator(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.protein_atom_emb = nn.Linear(27, d)
        self.k_lin = nn.Conv1d(d, d, 1, groups=4, bias=False)
        self.norm = nn.LayerNorm(d)
        self.nn = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 7))


class Diffusion(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.embed = nn.Embedding(22, d)
        self.spatial_coef = nn.Parameter(torch.rand(1, 1, 1, 3))
        self.net = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 3))
        self.register_buffer("approx_flag", torch.rand(21) < 0.5)
        self.register_buffer("table", torch.rand(21, 64))
        self.register_buffer("_dummy", torch.empty(0))


def trained(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, amsgrad=True)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    schedule.step(1.25)
    return optimizer.state_dict(), schedule.state_dict()


CONFIG = {"model": {"hidden": 16, "encoder": {"name": "cftfm"}}, "train": {"max_grad_norm": float("inf")}}


def files():
    """Every file, the class of its model, and where the state is in it."""
    folder = WORK / "from"
    folder.mkdir(parents=True, exist_ok=True)
    for name, cls in [("network", Network), ("generator", Generator), ("diffusion", Diffusion)]:
        torch.manual_seed(len(name))
        model = cls()
        optimizer, schedule = trained(model)
        averages = [p.detach().clone() for p in model.parameters()]
        torch.save(model.state_dict(), folder / f"{name}.pth")
        yield name, cls, folder / f"{name}.pth", None
        whole = {"config": EasyDict(CONFIG), "model": model.state_dict(), "optimizer": optimizer, "scheduler": schedule,
                 "trainer": {"optimizers": {0: optimizer}, "ema": {"shadow_params": averages}}, "iteration": 5000}
        torch.save(whole, folder / f"{name}.tar")
        yield name, cls, folder / f"{name}.tar", "model"
        older = {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}, "epoch": 3}
        torch.save(older, folder / f"{name}.ckpt", _use_new_zipfile_serialization=False)
        yield name, cls, folder / f"{name}.ckpt", "state_dict"


def load(path):
    return torch.load(path, weights_only=False)


def same(a, b):
    """Whether two values of torch.load are the same, tensors by their bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and a.equal(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def tensors(value):
    """A container with the tensors alone: None in place of other values of lists."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, dict):
        parts = {key: tensors(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not None} or None
    if isinstance(value, (list, tuple)):
        parts = [tensors(part) for part in value]
        return type(value)(parts) if any(part is not None for part in parts) else None
    return None


def storages(value):
    """How many storages the tensors of a state have."""
    return len({t.untyped_storage().data_ptr() for t in value.values() if t.numel()})


def strictly(cls, state):
    return cls().load_state_dict(state, strict=True)


def conversions(name, cls, path, key):
    whole = load(path)
    state = whole[key] if key else whole
    bare = {k.removeprefix("module."): v for k, v in state.items()}
    out = WORK / "to" / path.name
    out.mkdir(parents=True)
    # Nothing chosen: the containers stay as they are.
    atombank("convert", path, "-o", out / "all.pt")
    check(f"{path.name}: nesting", same(tensors(load(out / "all.pt")), tensors(whole)), "torch.load gives the same containers")
    part = [*(["--key", key] if key else []), *(["--strip-prefix", "module."] if key == "state_dict" else [])]
    atombank("convert", path, *part, "-o", out / "state.safetensors")
    model = cls()
    load_model(model, out / "state.safetensors", strict=True)
    check(f"{path.name}: safetensors", same(dict(model.state_dict()), dict(bare)), "load_model, strict")
    atombank("convert", out / "state.safetensors", "-o", out / "state.pt")
    back = torch.load(out / "state.pt", weights_only=True)
    strictly(cls, back)
    check(f"{path.name}: back", same(dict(sorted(back.items())), dict(sorted(bare.items()))), "every bit, strict")
    check(f"{path.name}: storages", storages(back) == storages(state), f"{len(back)} names, {storages(back)} storages")
    atombank("convert", out / "state.safetensors", "--generic", "-o", out / "state.gguf")
    atombank("convert", out / "state.gguf", "--expand-shared", "-o", out / "every.safetensors")
    check(f"{path.name}: every name", same(dict(sorted(load_file(out / "every.safetensors").items())), dict(sorted(bare.items()))),
          "GGUF and back, a tensor for each name")
    # Into the file, where everything else stays.
    torch.manual_seed(99)
    other = cls()
    save_model(other, str(out / "other.safetensors"))
    into = [*(["--into-key", key] if key else []), *(["--strip-prefix", "module."] if key == "state_dict" else [])]
    if key == "state_dict":
        atombank("convert", path, "--key", key, "-o", out / "prefixed.pt")
        save_file({f"module.{k}": v.clone() for k, v in other.state_dict().items()}, out / "other.safetensors")
    atombank("convert", out / "other.safetensors", "--into", path, *into, "-o", out / path.name)
    found = load(out / path.name)
    got = {k.removeprefix("module."): v for k, v in (found[key] if key else found).items()}
    check(f"{path.name}: into", same(dict(got), dict(other.state_dict())), "new weights")
    rest = lambda value: {k: v for k, v in value.items() if k != key} if key else {}
    check(f"{path.name}: the rest", same(rest(found), rest(whole)), "settings, optimizer and averages")
    if zipfile.is_zipfile(path):
        # The same with deflated entries, which the new file has stored.
        deflated, stored = out / f"deflated-{path.name}", out / f"stored-{path.name}"
        with zipfile.ZipFile(path) as a, zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as b:
            for entry in a.namelist():
                b.writestr(entry, a.read(entry))
        atombank("convert", out / "other.safetensors", "--into", deflated, *into, "-o", stored)
        again = load(stored)
        pickles = [next(z.read(n) for n in z.namelist() if n.endswith("/data.pkl")) for z in map(zipfile.ZipFile, (path, stored))]
        check(f"{path.name}: into a deflated one", same(again, found) and pickles[0] == pickles[1] and zipfile.ZipFile(stored).testzip() is None,
              "the same values and pickle")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(out / path.name) as new:
            program = [next(n for n in z.namelist() if n.endswith("data.pkl")) for z in (old, new)]
            check(f"{path.name}: pickle", old.read(program[0]) == new.read(program[1]) and new.testzip() is None, "same bytes")


def every_name(model):
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def merges(name, cls, path, key):
    whole = load(path)
    state = {k.removeprefix("module."): v for k, v in (whole[key] if key else whole).items()}
    linear = sorted({n.rpartition(".")[2] for n, m in cls().named_modules() if isinstance(m, nn.Linear)})
    pattern = "|".join(n.replace(".", r"\.") for n, m in cls().named_modules() if isinstance(m, nn.Linear))
    kinds = {
        "lora": LoraConfig(r=3, lora_alpha=5, target_modules=linear, init_lora_weights=False),
        "pattern": LoraConfig(r=3, lora_alpha=5, target_modules=pattern, init_lora_weights=False),
        "dora": LoraConfig(r=3, lora_alpha=5, target_modules=linear, init_lora_weights=False, use_dora=True),
        "loha": LoHaConfig(r=3, alpha=5, target_modules=linear, init_weights=False),
        "lokr": LoKrConfig(r=3, alpha=5, target_modules=linear, init_weights=False),
        "ia3": IA3Config(target_modules=linear, feedforward_modules=linear[:1], init_ia3_weights=False),
    }
    part = [*(["--key", key] if key else []), *(["--strip-prefix", "module."] if key == "state_dict" else [])]
    for kind, config in kinds.items():
        folder = WORK / "adapters" / path.name / kind
        model = cls()
        model.load_state_dict(state)
        get_peft_model(model, config).save_pretrained(folder)
        again = cls()
        again.load_state_dict(state)
        expected = every_name(PeftModel.from_pretrained(again, folder).merge_and_unload())
        out = folder / path.name
        atombank("merge", path, folder, *part, "-o", out)
        found = load(out)
        got = {k.removeprefix("module."): v for k, v in (found[key] if key else found).items()}
        strictly(cls, got)
        check(f"{path.name}: {kind}", same(dict(got), expected), f"PEFT's state under all {len(got)} names")
        if key:
            check(f"{path.name}: {kind}, the rest", same([found[k] for k in found if k != key], [whole[k] for k in whole if k != key]),
                  "as it was")
        if kind == "lora":
            atombank("extract", path, out, *[arg.replace("--key", "--key-a") for arg in part],
                     *(["--key-b", key] if key else []), "--rank", "3", "-o", folder / "extracted")
            fresh = cls()
            fresh.load_state_dict(state)
            merged = every_name(PeftModel.from_pretrained(fresh, folder / "extracted").merge_and_unload())
            worst = max((merged[k] - v).abs().max().item() for k, v in expected.items() if v.numel() and v.is_floating_point())
            check(f"{path.name}: extract", worst < 1e-5, f"PEFT loads it; largest difference {worst:.1e}")


for case in list(files()):
    conversions(*case)
    if case[3] != "model" or case[0] == "network":
        merges(*case)
finish("checkpoints")
