"""Makes small models of every decoder class with transformers and has atombank run them: folder and GGUF.

    python decoders.py ATOMBANK_BINARY WORK_DIR [--only CASE ...] [--keep]

Compared are the prompt's tokens, its logits and a greedy continuation. The models are those of decoder_models.py;
WORK_DIR has them while they are checked, with --keep afterwards, too. Each check prints a line; the last line counts
them. Models that have no GGUF, as the program says, and families whose GGUF can't be run are no failures and listed
before it. Exit code 1 where a check failed.
"""
import argparse
import json
import shutil
import sys

import torch
import transformers
from safetensors.numpy import load_file

import decoder_models
from common import WORK, atombank, check, finish, gap

LIMIT = 1e-4                            # of logits: as many of the largest, and as many
# How the program says that a GGUF of this family isn't taken back.
REFUSED = ["restore", "come back", "comes back"]
unmade, unconverted, refused = [], [], []


def ours(model, name):
    """What atombank computes with a folder or a GGUF: ids, logits, ids of the continuation."""
    folder = WORK / f"{name}-logits"
    shutil.rmtree(folder, ignore_errors=True)
    out = json.loads(atombank("generate", model, "--prompt", decoder_models.PROMPT, "--max-tokens",
                              decoder_models.TOKENS, "--ignore-eos", "--json", "--save-logits", folder))
    logits = load_file(folder / "logits.safetensors")["logits"]
    shutil.rmtree(folder)
    return out["prompt_ids"], logits, out["ids"]


def same(name, model, case, expected):
    ids, logits, continuation = ours(model, case)
    if ids != expected["ids"].tolist():
        check(name, False, f"other tokens in the prompt: {ids}")
        return
    largest = float(abs(expected["logits"]).max())
    difference = gap(logits, expected["logits"])
    first = next((i for i, (a, b) in enumerate(zip(continuation, expected["greedy"].tolist())) if a != b), None)
    greedy = "the same continuation" if first is None else f"another continuation from token {first} on"
    check(name, difference <= LIMIT * (1 + largest) and first is None and len(continuation) == len(expected["greedy"]),
          f"max |logit difference| {difference:.1e}, largest logit {largest:.2f}; {greedy}")


def in_gguf(case, model, expected):
    path, allowed = WORK / f"{case}.gguf", decoder_models.CASES[case]["refused"]
    try:
        atombank("convert", model, "-o", path, "--type", "f32")
    except RuntimeError as error:
        if allowed is None or allowed not in words_of(error):
            raise
        unconverted.append((case, words_of(error)))
        return
    try:
        same(f"{case}: GGUF", path, case, expected)
    except RuntimeError as error:
        if not any(word in words_of(error) for word in REFUSED):
            raise
        refused.append((case, words_of(error)))
    finally:
        path.unlink()


def words_of(error):
    """The program's own words, without the command and its notes; of a panic its place."""
    lines = str(error).splitlines() or [""]
    telling = [line for line in lines if "error: " in line or "panicked at" in line]
    return (telling or lines)[-1].split("error: ")[-1][:300]


def guarded(name, step, *args):
    """A check that ends early fails alone."""
    try:
        step(*args)
    except Exception as error:
        check(name, False, f"{type(error).__name__}: {words_of(error)}")


def run(case, keep):
    folder = WORK / case
    decoder_models.make(case, folder)
    expected = load_file(folder / "expected.safetensors")
    guarded(f"{case}: folder", same, f"{case}: folder", folder, case, expected)
    if decoder_models.CASES[case]["unsaid"]:
        expected = load_file(folder / "expected-gguf.safetensors")
    guarded(f"{case}: GGUF", in_gguf, case, folder, expected)
    if not keep:
        shutil.rmtree(folder)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("work")
    parser.add_argument("--only", nargs="+", metavar="CASE", default=list(decoder_models.CASES))
    parser.add_argument("--keep", action="store_true")
    return parser.parse_args()


args = arguments()
torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
WORK.mkdir(parents=True, exist_ok=True)
for case in args.only:
    if hasattr(transformers, decoder_models.CASES[case]["class"]):
        guarded(case, run, case, args.keep)
    else:
        unmade.append((case, decoder_models.CASES[case]["class"]))
for title, cases in [("no such class in this transformers", unmade), ("no GGUF", unconverted),
                     ("GGUF not run", refused)]:
    for case, why in cases:
        print(f"       {case}: {title}: {why}")
    if cases:
        print(f"       {len(cases)} x {title}")
finish("decoders")
