"""Extracts LoRAs with mergekit-extract-lora and with atombank, with the same options, and compares them.

    python extract_mergekit.py ATOMBANK_BINARY WORK_DIR

The changes have a low rank, so that both programs find all of them: products of factors have to agree to 1e-5 of the
largest value, tensors that are saved whole bit by bit, and so do the modules that have either. torch takes singular values
in float64 for these checks: in float32, as mergekit has it, products are off by 1e-5 themselves. Each check prints a line;
the last line counts them. Exit code 1 where one failed.
"""
import subprocess
import sys

import torch
import transformers
from safetensors.torch import load_file

from common import FIXTURES, WORK, atombank, check, finish

LIMIT = 1e-5
MERGEKIT = """
import torch
svd = torch.linalg.svd
torch.linalg.svd = lambda of, **options: [part.to(of.dtype) for part in svd(of.double(), **options)]
from mergekit.scripts.extract_lora import main
main()
"""
RANK = 6
# Where modules are given, mergekit can't add any to them: it has to be given all that it would add.
UNDECOMPOSED = ["embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm"]
CASES = {
    "all": [],
    "included": ["--include-regex", "q_proj", "--include-regex", r"layers\.1\.mlp"],
    "excluded": ["--exclude-regex", "mlp", "--exclude-regex", "embed_tokens", "--exclude-regex", "norm"],
    "saved": [text for name in ["o_proj", "model.layers.0.mlp.up_proj", *UNDECOMPOSED] for text in ("--save-module", name)],
    "embeddings": ["--embed-lora"],
    "embeddings, excluded": ["--embed-lora", "--exclude-regex", "lm_head"],
    "small values": ["--sv-epsilon", "0.3"],
    "skipped": ["--skip-undecomposable"],
    "lower rank": ["--max-rank", "3"],
}


def low_rank(shape, sizes):
    """A change with these singular values."""
    left, right = [torch.linalg.qr(torch.randn(n, len(sizes)))[0] for n in shape]
    return left @ torch.diag(torch.tensor(sizes)) @ right.T


def finetune(base, folder):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.save_pretrained(WORK / "base")
    for name, value in model.named_parameters():
        # Far apart from each other, so that any rank has one closest product.
        value.data += low_rank(value.shape, [4.0, 2.0, 1.0, 0.5, 0.2]) if value.dim() == 2 else 0.1 * torch.randn(value.shape)
    model.save_pretrained(folder)


def by_module(folder):
    """Products by the modules' paths, and whole tensors by their names."""
    factors = load_file(folder / "adapter_model.safetensors")
    products, whole = {}, {}
    for name, value in factors.items():
        name = name.removeprefix("base_model.model.")
        for a, b in [(".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")]:
            if name.endswith(a):
                product = factors["base_model.model." + name.replace(a, b)].double() @ value.double()
                products[name.removesuffix(a)] = product.T if "embedding" in a else product
        if "lora_" not in name:
            whole[name] = value
    return products, whole


def run(case, options):
    slug = case.replace(", ", "-").replace(" ", "-")
    theirs, ours = WORK / f"{slug}-mergekit", WORK / f"{slug}-atombank"
    rank = [] if "--max-rank" in options else ["--max-rank", str(RANK)]
    command = [sys.executable, "-c", MERGEKIT, "--model", WORK / "finetuned", "--base-model", WORK / "base",
               "--out-path", theirs, *rank, *options]
    made = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(made.stderr[-500:])
    atombank("extract", WORK / "base", WORK / "finetuned", "-o", ours, *rank, *options)
    (expected, kept), (found, whole) = by_module(theirs), by_module(ours)
    same = set(expected) == set(found) and set(kept) == set(whole)
    gaps = [float((found[m] - expected[m]).abs().max() / expected[m].abs().max()) for m in expected] if same else [float("inf")]
    equal = same and all(torch.equal(kept[name], whole[name]) for name in kept)
    odd = sorted(set(expected) ^ set(found) | set(kept) ^ set(whole))
    check(case, equal and max(gaps, default=0.0) <= LIMIT, f"{len(found)} products, furthest {max(gaps, default=0.0):.1e}; {len(whole)} tensors whole"
          + (f"; in one alone: {odd[:3]}" if odd else ""))


transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
WORK.mkdir(parents=True)
finetune(FIXTURES / "convert" / "llama" / "model", WORK / "finetuned")
for case, options in CASES.items():
    try:
        run(case, options)
    except Exception as error:
        check(case, False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
finish("extract_mergekit")
