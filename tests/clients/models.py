"""Small models to merge adapters into, and how merged weights are compared."""
import shutil
import subprocess
import traceback

import torch
import transformers
from safetensors.torch import load_file

from common import BINARY, FIXTURES, WORK, check

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
EMBEDDINGS = ["model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight"]
HEADS = ["lm_head.weight", "embed_out.weight"]


def fixture(base):
    return FIXTURES / "convert" / ("llama" if base == "medium" else base) / "model"


def base_folder(base, dtype):
    """A base saved in a type, made where it isn't there yet."""
    folder = WORK / f"base-{base}-{dtype}"
    if not folder.exists():
        torch.manual_seed(11)
        if base == "medium":
            config = transformers.LlamaConfig(hidden_size=256, num_hidden_layers=4, intermediate_size=688, num_attention_heads=8, num_key_value_heads=4,
                                              vocab_size=320, tie_word_embeddings=False, initializer_range=0.1)
            model = transformers.LlamaForCausalLM(config).to(DTYPES[dtype])
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(fixture(base), dtype=DTYPES[dtype])
        model.save_pretrained(folder)
        for file in [*fixture(base).glob("tokenizer*"), *fixture(base).glob("*vocab*"), *fixture(base).glob("merges.txt")]:
            shutil.copy(file, folder)
    return folder


def load(folder, dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], attn_implementation="eager").eval()


def tensors(folder):
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def with_head(values):
    """A tied head is in no file."""
    embeddings = next(name for name in EMBEDDINGS if name in values)
    return values if any(name in values for name in HEADS) else {**values, HEADS[0]: values[embeddings]}


def is_tied(values):
    embeddings = next(values[name] for name in EMBEDDINGS if name in values)
    return torch.equal(embeddings, next(values[name] for name in HEADS if name in values))


def units_off(found, expected):
    """How far elements are off, in units in the last place of the larger of their own and the mean size."""
    info = torch.finfo(expected.dtype)
    found, expected = found.double(), expected.double()
    size = torch.maximum(torch.maximum(found.abs(), expected.abs()), expected.abs().mean()).clamp(min=info.tiny)
    return (found - expected).abs() / (info.eps * 2 ** size.log2().floor())


def same_bits(found, expected):
    kind = {4: torch.int32, 2: torch.int16}[expected.element_size()]
    return found.view(kind) == expected.view(kind)


def sums_in_runs(length):
    """Whether torch adds the terms of an f32 product in runs of at most this length, as it does on most processors."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((16, 512), (512, 16)))
    total = torch.zeros(16, 16)
    for start in range(0, 512, length):
        run = torch.zeros(16, 16, dtype=torch.float64)
        for i in range(start, min(start + length, 512)):
            # A multiplication and an addition with one rounding.
            run = (run + a[:, i, None].double() * b[None, i].double()).float().double()
        total += run.float()
    return torch.equal(a @ b, total)


# How far sums may be off on other processors, in units of f32 and of 16-bit types: 0 where torch's sums are atombank's.
OTHER_SUMS = {4: 0, 2: 0} if sums_in_runs(192) else {4: 128, 2: 8}
if OTHER_SUMS[4]:
    print(f"torch's products on this processor are summed in other runs: elements may be off by {OTHER_SUMS} units, by the type's bytes")


def same_weights(units, base, found, expected):
    """Whether all are as near as they have to be, and a line for the check."""
    units = max(units, *(OTHER_SUMS[value.element_size()] for value in expected.values()))
    written, found, expected = found, with_head(found), with_head(expected)
    if set(found) != set(expected):
        return False, f"missing {sorted(set(expected) - set(found))[:3]}, surplus {sorted(set(found) - set(expected))[:3]}"
    if not is_tied(found) and not any(name in written for name in HEADS):
        return False, "no head beside embeddings that differ from it"
    before, changed, wrong, count, differing, furthest = with_head(tensors(base)), 0, [], 0, 0, 0.0
    for name, value in expected.items():
        ours = found[name]
        if ours.shape != value.shape or ours.dtype != value.dtype:
            wrong.append(f"{name} is {ours.dtype} {tuple(ours.shape)} for {value.dtype} {tuple(value.shape)}")
            continue
        if not value.isfinite().all():
            wrong.append(f"{name}: the expected one is not finite")
            continue
        changed += not torch.equal(value, before[name])
        other = ~same_bits(ours, value)
        count += value.numel()
        differing += int(other.sum())
        if other.any():
            off = torch.nan_to_num(units_off(ours, value), nan=float("inf"))
            furthest = max(furthest, float(off.max()))
            if off.max() > units or units == 0:
                at = tuple(int(i) for i in torch.unravel_index((off if off.max() > units else other.int()).argmax(), off.shape))
                wrong.append(f"{name}: {int(other.sum())} of {value.numel()} differ, {float(off.max()):.3g} units at {at}: {float(ours[at])} for {float(value[at])}")
    if not changed:
        wrong.append("the adapter changes nothing")
    line = f"{changed} of {len(expected)} tensors changed; "
    line += f"{differing} of {count} elements differ, by up to {furthest:.2g} of {units} units" if differing else "bit-equal"
    return not wrong, "; ".join([line, *wrong[:3], *([f"and {len(wrong) - 3} more"] if len(wrong) > 3 else [])])


def refused(name, base, *adapters):
    """One line, exit code 1, nothing written."""
    out = WORK / "refused"
    run = subprocess.run([BINARY, "merge", base, *adapters, "-o", out, "--quiet"], capture_output=True, text=True)
    lines = run.stderr.strip().splitlines()
    left = [path.name for path in WORK.glob("*refused*")]
    check(f"refused: {name}", run.returncode == 1 and len(lines) == 1 and not left,
          f"exit code {run.returncode}, {len(lines)} lines, left {left}: {lines[0] if lines else 'no message'}")
    shutil.rmtree(out, ignore_errors=True)


def guarded(name, work):
    """One failure doesn't stop the others."""
    try:
        work()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]} (line {last.lineno} of {last.filename.rsplit('/', 1)[-1]})")
