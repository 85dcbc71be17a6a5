"""Merges adapters into tiny models of every class whose checkpoints have other names or parts than the class.

    python renamed.py ATOMBANK_BINARY WORK_DIR [CLASS ..]

For each class in transformers' conversion_mapping.py a tiny random model is saved, under the checkpoint's names, and
loaded again. A LoRA with random values on all its linear layers is merged by PEFT, and the result saved; atombank merges
the same adapter into the same folder. Some classes that split or join tensors get adapters of other kinds, too. All bits have to be the same. Classes that can't be made here are listed. Each check
prints a line; the last line counts them. Exit code 1 where one failed.
"""
import shutil
import sys
import warnings
import zlib

import peft
import torch
import transformers

from common import WORK, atombank, check, finish
from models import tensors
from tiny import TinyModel, chosen

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
ONLY = sys.argv[3:]


# Kinds of adapters, and classes that split or join tensors, which are tried with all of them.
KINDS = {
    "LoRA": lambda targets: peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False),
    "DoRA": lambda targets: peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False, use_dora=True),
    "LoHa": lambda targets: peft.LoHaConfig(r=4, alpha=6, target_modules=targets, init_weights=False),
    "LoKr": lambda targets: peft.LoKrConfig(r=4, alpha=6, target_modules=targets, init_weights=False),
    "HiRA": lambda targets: peft.HiraConfig(r=4, target_modules=targets, init_weights=False),
}
# Classes with a module under two paths, of which the checkpoint has one: refused by name.
REFUSED = ["GroundingDinoForObjectDetection", "MMGroundingDinoForObjectDetection"]
# Classes that can't be compared: loading and saving PixioBackbone mixes its two norms, and a tiny LW-DETR has an empty weight.
LEFT_OUT = ["LwDetrForObjectDetection", "LwDetrModel", "PixioBackbone"]
SHARING = ["NomicBertModel", "GteModel", "JinaEmbeddingsV3Model", "Molmo2Model", "Kimi_K25ForConditionalGeneration", "MiniMaxM3VLModel",
           "InklingForConditionalGeneration", "Tipsv2Model", "Step3p7ForConditionalGeneration"]


def linear(model):
    """The paths of all linear layers but those of a head that is tied to the embeddings."""
    tied = set(model.all_tied_weights_keys)
    exact = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    # PEFT takes no projection out of a Mamba block.
    mamba = {f"{name}.out_proj" for name, module in model.named_modules() if "mamba" in type(module).__name__.lower()}
    return [name for name in exact if f"{name}.weight" not in tied and name not in mamba]


def make(cls, kind, folder):
    """A tiny model of the class, an adapter of it, and PEFT's merge of both; those that are there already stay."""
    base, adapter, expected = folder / "base", folder / "adapter", folder / "expected"
    if (folder / "made").exists():
        return base, adapter, expected
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(zlib.crc32(cls.__name__.encode()))
    dtype = [torch.float32, torch.bfloat16][zlib.crc32(cls.__name__.encode()) % 2]
    model = TinyModel(cls).model().to(dtype).eval()
    # Twice: some classes keep tensors in f32, or a row of zeros, but only from loading on.
    for _ in range(2):
        model.save_pretrained(base)
        model = cls.from_pretrained(base, dtype=dtype).eval()
    targets = linear(model)
    adapted = peft.get_peft_model(model, KINDS[kind](targets))
    try:
        adapted.save_pretrained(adapter)
    except NotImplementedError:
        # A class that doesn't say what its input embeddings are.
        adapted.save_pretrained(adapter, save_embedding_layers=False)
    adapted.merge_and_unload().save_pretrained(expected)
    (folder / "made").write_text(str(len(targets)))
    return base, adapter, expected


def compare(name, base, found, expected):
    found, expected, before = tensors(found), tensors(expected), tensors(base)
    if set(found) != set(expected):
        check(name, False, f"missing {sorted(set(expected) - set(found))[:3]}, surplus {sorted(set(found) - set(expected))[:3]}")
        return
    wrong = [key for key, value in expected.items() if found[key].shape != value.shape or found[key].dtype != value.dtype
             or not torch.equal(found[key].flatten().view(torch.uint8), value.flatten().view(torch.uint8))]
    changed = sum(not torch.equal(value, before[key]) for key, value in expected.items())
    check(name, changed and not wrong, f"{changed} of {len(expected)} tensors changed, {'bit-equal' if not wrong else f'{len(wrong)} differ, like {wrong[:3]}'}")


not_made = []
WORK.mkdir(parents=True, exist_ok=True)
for cls, kind in [(cls, kind) for cls in chosen(ONLY) for kind in (KINDS if cls.__name__ in SHARING else ["LoRA"])]:
    name = cls.__name__ if kind == "LoRA" else f"{cls.__name__} {kind}"
    folder = WORK / name.replace(" ", "-")
    if cls.__name__ in LEFT_OUT:
        not_made.append(name)
        continue
    try:
        base, adapter, expected = make(cls, kind, folder)
    except Exception as error:
        not_made.append(name)
        print(f"       {name} can't be made here: {type(error).__name__}: {' '.join(str(error).split())[:160]}", flush=True)
        continue
    shutil.rmtree(folder / "merged", ignore_errors=True)
    try:
        atombank("merge", base, adapter, "-o", folder / "merged", "--quiet")
        compare(name, base, folder / "merged", expected)
    except Exception as error:
        is_refused = cls.__name__ in REFUSED and "expected a module of the base" in str(error)
        check(name, is_refused, f"{type(error).__name__}: {' '.join(str(error).split())[-400:]}")
print(f"not made: {' '.join(not_made)}")
finish("renamed")
