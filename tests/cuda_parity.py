"""Compares what atombank computes on a GPU with what it computes on the CPU: tests/cuda.sh runs this.

    python cuda_parity.py ATOMBANK_BINARY WORK_DIR [--device cuda:N] [--models CASE ...]

The models are the demo's base and small ones of clients/decoder_models.py, which are made in WORK_DIR/models unless they
are there. Each check prints a line; the last line counts them. Exit code 1 where a check failed.
"""
import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

LIMIT = 1e-3                            # of logits, losses and weights of atoms
# Small updates, and with them the losses, drift apart with every step: rounding decides which atom is second.
DRIFT = 1e-2                            # of losses, as a share
STEPS = 20
BASE, ROWS = Path("fixtures/demo/base"), Path("fixtures/demo/train.jsonl")
INSTRUCTION, WORD = "Reverse the letters.", "garden"
PROMPT = "def area(width, height):\n    return width * height  # the plain rectangle"
# Sinks, windows and limited experts; latent attention, groups of experts and a shared one.
MODELS = ["gpt-oss", "deepseek3"]
WIDE = ["training.lambda_prior=0.1", "training.lambda_balance=0.1", "training.gradient_accumulation=2",
        "training.batch_size=16", "adapter.target_modules=['q_proj','o_proj','gate_proj','down_proj']"]
results = []


def check(name, passed, detail):
    results.append(bool(passed))
    print(f"{'ok    ' if passed else 'FAILED'} {name}: {detail}", flush=True)


def atombank(*args):
    run = subprocess.run([args_given.binary, *map(str, args)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"atombank {' '.join(map(str, args))}: {run.stderr.strip()[-600:]}")
    return run.stdout


def fresh(*names):
    """A path that isn't there."""
    path = WORK.joinpath("files", *names)
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def tensors(path):
    """The f32 tensors of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, info in json.loads(data[8:start]).items():
        if name != "__metadata__":
            assert info["dtype"] == "F32", f"{path}: {name} is {info['dtype']}"
            first, end = info["data_offsets"]
            found[name] = np.frombuffer(data[start + first:start + end], "<f4").reshape(info["shape"])
    return found


def gap(a, b):
    """The largest difference; NaN, which nothing is below, if one is missing."""
    return float(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).max())


def both(run):
    """What `run` gives for the CPU and for the GPU."""
    return run("cpu"), run(args_given.device)


# --- what is compared -------------------------------------------------------------------------------------------------

def generated(name, model, *args):
    """Logits of a prompt, and tokens that follow it one by one, with a cache."""
    def on(device):
        folder = fresh(f"{name}-{device[:4]}-logits")
        out = json.loads(atombank("generate", model, *args, "--max-tokens", 24, "--ignore-eos", "--json",
                                  "--save-logits", folder, "--device", device))
        return out["prompt_ids"], tensors(folder / "logits.safetensors")["logits"], out["ids"]

    (ids, logits, new), (ids_there, logits_there, new_there) = both(on)
    difference = gap(logits, logits_there)
    first = next((i for i, (a, b) in enumerate(zip(new, new_there)) if a != b), None)
    check(f"{name}: logits", ids == ids_there and difference <= LIMIT,
          f"max |difference| {difference:.1e}, largest {np.abs(logits).max():.2f}, {len(ids)} tokens")
    check(f"{name}: continuation", new == new_there,
          f"{len(new)} tokens" if first is None else f"other tokens from number {first} on")


def trained(name, model, steps, *settings):
    """Losses of a training run, and the adapters that it makes."""
    def on(device):
        folder = fresh(f"{name}-{device[:4]}")
        changes = {"base": model, "output": folder, "training.steps": steps, "training.eval_every": 0,
                   "training.checkpoint_every": 0}
        sets = [f"{key}={value}" for key, value in changes.items()] + list(settings)
        atombank("train", "fixtures/demo/bank.toml", *(part for text in sets for part in ("--set", text)), "--quiet",
                 "--device", device)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return folder, [line for line in lines if "loss" in line]

    (folder, here), (folder_there, there) = both(on)
    losses, losses_there = ([line["loss"] for line in lines] for lines in (here, there))
    norm, norm_there = (lines[0]["gradient_norm"] for lines in (here, there))
    first, all_of_them = gap(losses[:1], losses_there[:1]), gap(losses, losses_there)
    check(f"{name}: first step", first <= LIMIT and abs(norm - norm_there) <= LIMIT * (1 + norm),
          f"loss {losses[0]:.4f} and {losses_there[0]:.4f}, gradient norm {norm:.4f} and {norm_there:.4f}")
    check(f"{name}: {len(losses)} steps", all_of_them <= DRIFT * max(losses) and len(losses) == steps,
          f"last loss {losses[-1]:.4f} and {losses_there[-1]:.4f}, max |difference| {all_of_them:.1e}")
    return folder, folder_there


def atoms(alphas):
    return [[i for i, share in enumerate(alpha) if share > 0] for alpha in alphas]


def same_atoms(name, here, there, limit):
    difference = gap(here["alphas"], there["alphas"])
    check(name, atoms(here["alphas"]) == atoms(there["alphas"]) and difference <= limit,
          f"atoms by block {atoms(here['alphas'])} and {atoms(there['alphas'])}, max |difference| {difference:.1e}")


def routed(name, banks, *request):
    """A bank's atoms, on both devices; then those of the bank that was trained on the GPU."""
    def on(device, bank=banks[0]):
        return json.loads(atombank("route", BASE, bank, *request, "--json", "--device", device))

    here, there = both(on)
    same_atoms(f"{name}: route", here, there, LIMIT)
    same_atoms(f"{name}: route, trained on each", here, on(args_given.device, banks[1]), 10 * DRIFT)


def baked(name, bank, *request):
    def on(device):
        folder = fresh(f"{name}-baked-{device[:4]}")
        report = json.loads(atombank("bake", BASE, bank, *request, "-o", folder, "--to", "lora", "--json", "--quiet",
                                     "--device", device))
        return report, tensors(folder / "adapter_model.safetensors")

    (here, lora), (there, lora_there) = both(on)
    same_atoms(f"{name}: bake", here, there, LIMIT)
    difference = max(gap(value, lora_there[key]) for key, value in lora.items())
    off = there["verified"]["max_logit_difference"]
    check(f"{name}: baked weights", lora.keys() == lora_there.keys() and difference <= LIMIT and off <= LIMIT,
          f"max |difference| {difference:.1e}; routed against baked there {off:.1e}")


def built(loras):
    """A bank of LoRAs, whose descriptions the base's embeddings tell apart."""
    texts = ["Reverse the letters.", "Use capital letters."]
    describe = [part for lora, text in zip(loras, texts) for part in ("--describe", f"{lora.name}={text}")]

    def on(device):
        bank = fresh(f"built-{device[:4]}")
        atombank("bank", "build", BASE, *loras, "-o", bank, *describe, "--quiet", "--device", device)
        return json.loads(atombank("route", BASE, bank, "--instruction", texts[0], "--routing", "prior", "--json",
                                   "--device", device))

    here, there = both(on)
    same_atoms("bank build", here, there, LIMIT)


def importance(path):
    """Entries of the older form of an importance matrix: name, calls, values."""
    data, at, entries = path.read_bytes(), 4, {}
    for _ in range(int.from_bytes(data[:4], "little")):
        length = int.from_bytes(data[at:at + 4], "little")
        name = data[at + 4:at + 4 + length].decode()
        at += 4 + length
        count = int.from_bytes(data[at + 4:at + 8], "little")
        entries[name] = np.frombuffer(data, "<f4", count, at + 8)
        at += 8 + 4 * count
    return entries


def measured(name, model):
    def on(device):
        path = fresh(f"{name}-{device[:4]}.dat")
        atombank("imatrix", model, ROWS, "-o", path, "--ctx", 64, "--chunks", 8, "--quiet", "--device", device)
        return importance(path)

    here, there = both(on)
    off = max(gap(value, there[key]) / (1e-6 + float(np.abs(value).max())) for key, value in here.items())
    check(f"{name}: imatrix", here.keys() == there.keys() and off <= LIMIT,
          f"{len(here)} entries, off by {off:.1e} of the largest")


def demo():
    def on(device):
        return json.loads(atombank("demo", "--set", f"training.steps={STEPS}", "--json", "--quiet", "--device", device))

    here, there = both(on)
    for kind in ["bank", "lora"]:
        loss, loss_there = here[kind]["eval_loss"], there[kind]["eval_loss"]
        check(f"demo: {kind}", abs(loss - loss_there) <= DRIFT * loss, f"held-out loss {loss:.4f} and {loss_there:.4f}")


# --- all of it --------------------------------------------------------------------------------------------------------

def small(case):
    """The folder of a small model, made if it isn't there."""
    folder = WORK / "models" / case
    if not (folder / "expected.safetensors").is_file():
        sys.path.insert(0, "tests/clients")
        import decoder_models
        import torch
        torch.set_num_threads(1)
        decoder_models.make(case, folder)
    return folder


def of_demo():
    request = ["--instruction", INSTRUCTION, "--prompt", WORD]
    generated("demo base", BASE, *request)
    banks = trained("bank", BASE, STEPS)
    generated("bank", BASE, "--adapter", banks[0], *request)
    routed("bank", banks, *request)
    baked("bank", banks[0], *request)
    tokens = trained("bank by token", BASE, 5, "adapter.routing=token", *WIDE)
    generated("bank by token", BASE, "--adapter", tokens[0], *request)
    lora = trained("LoRA", BASE, STEPS, "kind=lora")[0]
    generated("LoRA", BASE, "--adapter", lora, *request)
    built([lora, Path("fixtures/demo/lora")])
    measured("demo base", BASE)
    demo()


def of_small(case):
    folder = small(case)
    generated(case, folder, "--prompt", PROMPT)
    trained(f"{case} bank", folder, 3, "training.batch_size=8", "training.checkpoint_activations=true",
            "adapter.target_modules=['o_proj']")
    measured(case, folder)


def guarded(name, step, *args):
    try:
        step(*args)
    except Exception as error:
        check(name, False, f"{type(error).__name__}: {error}")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("binary")
parser.add_argument("work", type=Path)
parser.add_argument("--device", default="cuda")
parser.add_argument("--models", nargs="*", metavar="CASE", default=MODELS)
args_given = parser.parse_args()
WORK = args_given.work
guarded("demo base", of_demo)
for case in args_given.models:
    guarded(case, of_small, case)
print(f"cuda: {sum(results)} passed, {len(results) - sum(results)} failed")
sys.exit(0 if results and all(results) else 1)
