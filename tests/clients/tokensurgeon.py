"""Gives models other vocabularies with mergekit-tokensurgeon and with `atombank tokensurgeon`.

    python tokensurgeon.py ATOMBANK_BINARY WORK_DIR

The models are random Llamas in float32 with the tokenizers of two fixtures, one of bytes as letters, one with tokens like <0x41>.
Every method of mergekit has random options. Rows have to be the same to 1e-5 of the largest value: mergekit computes in float32,
in which its least squares are solved, too. The tokenizers library lists tokens in an order that changes from run to run, and
mergekit's random rows follow it: here it is that of ids, as in atombank. mp_rope reads a field of configs that transformers 5
has elsewhere; it gets it here. Each check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import logging
import random
import shutil

import torch
from mergekit.common import ModelReference
from mergekit.scripts import tokensurgeon as surgeon
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from common import FIXTURES, WORK, atombank, check, finish

LIMIT, CASES = 1e-5, 24
TOKENIZERS = {"letters": FIXTURES / "demo/base", "pieces": FIXTURES / "convert/llama/model"}
METHODS = ["omp", "common_interpolation", "subword", "mean", "zero", "randn", "john_hewitt", "mp_rope"]
as_saved, in_any_order = ModelReference.config, surgeon.normalized_vocabulary


def with_rope_theta(model, trust_remote_code=False):
    config = as_saved(model, trust_remote_code)
    config.rope_theta = config.rope_parameters["rope_theta"]
    return config


ModelReference.config = with_rope_theta
surgeon.normalized_vocabulary = lambda tokenizer: dict(sorted(in_any_order(tokenizer).items(), key=lambda item: item[1]))


def make(folder, tokenizer, width, heads, tied, seed):
    rows = max(AutoTokenizer.from_pretrained(TOKENIZERS[tokenizer]).get_vocab().values()) + 1 + random.choice([0, 5])
    config = LlamaConfig(hidden_size=width, intermediate_size=24, num_hidden_layers=1, num_attention_heads=heads, num_key_value_heads=heads,
                         vocab_size=rows, max_position_embeddings=32, tie_word_embeddings=tied, rope_theta=random.choice([1e4, 5e5]))
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.randn(rows, width) * 0.2 + 0.05)
        if not tied:
            model.get_output_embeddings().weight.copy_(torch.randn(rows, width) * 0.3)
    model.save_pretrained(folder)
    for file in TOKENIZERS[tokenizer].glob("tokenizer*"):
        shutil.copy(file, folder / file.name)


def options(method):
    chosen = {"approximation-method": method}
    if method in ("omp", "common_interpolation", "mp_rope"):
        chosen["k"] = random.randint(2, 12)
    if method == "common_interpolation":
        chosen["weight-scheme"] = random.choice(["distance_proportional", "least_squares"])
        if random.random() < 0.5:
            chosen["cosine-similarity"] = True
    if method == "subword":
        chosen["subword-method"] = random.choice(["mean", "sum", "weighted_mean", "first_last"])
    if method in ("randn", "john_hewitt"):
        chosen["random-seed"] = random.randint(0, 99)
    for name in ("prefix-match", "byte-match"):
        if random.random() < 0.4:
            chosen[name] = random.choice(["yes", "no", "embed", "lm_head"])
    if random.random() < 0.3:
        chosen["magikarp"] = True
    return chosen


def run(number, method):
    case, chosen = f"{number}-{method}", options(method)
    # mergekit keeps models by their paths, so each has a path of its own.
    model, donor, theirs, mine = (WORK / f"{number}-{name}" for name in ("model", "donor", "theirs", "ours"))
    one, other = random.sample(list(TOKENIZERS), 2)
    tied = random.random() < 0.3
    make(model, one, 32, 2, tied, number)
    make(donor, other, random.choice([24, 32, 48]), 2, tied or random.random() < 0.3, number + 100)
    flags = [text for name, value in chosen.items() for text in ([f"--{name}"] if value is True else [f"--{name}", str(value)])]
    surgeon.main([str(model), str(donor), str(theirs), *flags], standalone_mode=False)
    ours = [flag.replace("--approximation-method", "--method").replace("--random-seed", "--seed") for flag in flags]
    atombank("tokensurgeon", model, donor, "-o", mine, *ours)
    expected, found = (load_file(folder / "model.safetensors") for folder in (theirs, mine))
    worst, same = 0.0, 0
    for name in expected:
        worst = max(worst, float((found[name] - expected[name]).abs().max() / expected[name].abs().max()))
        same += torch.equal(found[name], expected[name])
    check(case, set(found) == set(expected) and worst <= LIMIT, f"{one} to {other}, {chosen}: furthest {worst:.1e}, {same} of {len(expected)} tensors the same")


logging.disable(logging.WARNING)
torch.set_num_threads(1)
WORK.mkdir(parents=True)
random.seed(2)
for number in range(CASES):
    method = METHODS[number % len(METHODS)]
    try:
        run(number, method)
    except Exception as error:
        check(f"{number}-{method}", False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
finish("tokensurgeon")
