"""Finetunes models by hand, has atombank extract a LoRA, and compares what PEFT makes of base and LoRA with the finetuned model.

    python extract.py ATOMBANK_BINARY WORK_DIR

Changes of low rank have to come back to rounding, logits and all; of others the error of each weight after PEFT's merge has
to be the one that was printed. Each check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import json
import warnings

import peft
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from common import FIXTURES, WORK, atombank, check, finish, gap, hf_logits

LOGITS = 1e-3
PROMPT = [(i * 37 + 11) % 250 + 3 for i in range(60)]
LINEAR = (torch.nn.Linear, Conv1D)


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def parts(model):
    """Linear layers without the head, and norms, by their paths."""
    head = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, LINEAR) and m is not head}
    norms = {name: m for name, m in model.named_modules() if "norm" in type(m).__name__.lower() and getattr(m, "weight", None) is not None}
    return linear, norms


def low_rank(model, rank):
    for i, module in enumerate(parts(model)[0].values()):
        out, inner = module.weight.shape
        # Modules whose changes differ in rank, and one that has none.
        k = (i % 3) * rank // 2
        module.weight.data += 0.02 * torch.randn(out, k) @ torch.randn(k, inner)


def full_rank(model):
    for module in parts(model)[0].values():
        module.weight.data += 0.05 * torch.randn(module.weight.shape)


def norms(model):
    for module in parts(model)[1].values():
        for value in module.parameters(recurse=False):
            value.data += 0.1 * torch.randn(value.shape)


def biases(model):
    for module in parts(model)[0].values():
        if module.bias is not None:
            module.bias.data += 0.1 * torch.randn(module.bias.shape)


def embeddings(model):
    for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
        module.weight.data += 0.1 * torch.randn(module.weight.shape)


def low_rank_embeddings(model):
    for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
        rows, cols = module.weight.shape
        module.weight.data += 0.02 * torch.randn(rows, 5) @ torch.randn(5, cols)


def experts(model):
    for value in stacks(model).values():
        count, rows, cols = value.shape
        # Experts whose changes differ in rank, and one that has none.
        for i in range(count):
            value.data[i] += 0.02 * torch.randn(rows, i % 4) @ torch.randn(i % 4, cols)


def stacks(model):
    """Parameters with a matrix of every expert."""
    return {name: value for name, value in model.named_parameters() if value.dim() == 3}


def untie(model):
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach() + 0.1 * torch.randn(head.weight.shape))
    model.config.tie_word_embeddings = False


CASES = {
    "low rank": ("llama", [lambda m: low_rank(m, 8)], []),
    "low rank, biases": ("qwen2", [lambda m: low_rank(m, 8), biases], []),
    "low rank, conv1d, biases": ("gpt2", [lambda m: low_rank(m, 8), biases, norms], []),
    "norms": ("llama", [lambda m: low_rank(m, 4), norms], []),
    "norms alone": ("qwen3", [norms], []),
    "biases alone": ("qwen2", [biases], []),
    "embeddings and head": ("llama", [lambda m: low_rank(m, 4), embeddings], []),
    "embeddings, tied": ("qwen2", [lambda m: low_rank(m, 4), embeddings], []),
    "embeddings alone, tied": ("gemma", [embeddings], []),
    "untied": ("qwen2", [lambda m: low_rank(m, 4), untie], []),
    "fused": ("gpt-neox", [lambda m: low_rank(m, 8), biases, norms], []),
    "embeddings of low rank": ("llama", [lambda m: low_rank(m, 4), low_rank_embeddings], ["--embed-lora"]),
    "experts": ("qwen3moe", [lambda m: low_rank(m, 4), experts], ["--rank", "8"]),
    "experts alone": ("mixtral", [experts], ["--rank", "4"]),
    "full rank": ("llama", [full_rank], ["--rank", "16"]),
    "full rank, conv1d": ("gpt2", [full_rank], ["--rank", "16"]),
    "full rank, bf16 factors": ("llama", [full_rank], ["--rank", "16", "--type", "bf16"]),
    "energy": ("llama", [full_rank], ["--rank", "128", "--energy", "0.5"]),
}


def weights(model):
    modules = {name: m.weight for name, m in model.named_modules() if isinstance(m, (*LINEAR, torch.nn.Embedding))}
    return {name: value.detach().double() for name, value in (modules | stacks(model)).items()}


def run(name, base_name, changes, options):
    torch.manual_seed(len(name))
    slug = name.replace(" ", "-").replace(",", "")
    base, finetuned, lora = FIXTURES / "convert" / base_name / "model", WORK / f"{slug}-finetuned", WORK / f"{slug}-lora"
    model = load(base)
    before = weights(model)
    for change in changes:
        change(model)
    model.save_pretrained(finetuned)
    expected, after = hf_logits(model, PROMPT), weights(model)
    report = json.loads(atombank("extract", base, finetuned, "-o", lora, "--json", "--quiet", *options))
    adapted = peft.PeftModel.from_pretrained(load(base), lora).eval()
    found = hf_logits(adapted, PROMPT)
    merged = weights(adapted.merge_and_unload())
    worst, furthest = "", 0.0
    for module in report["modules"]:
        path = module["module"]
        delta = after[path] - before[path]
        error = float((after[path] - merged[path]).norm() / delta.norm())
        # What is printed is the error before the sum is rounded to f32.
        slack = 2e-7 * float(after[path].norm() / delta.norm())
        off = abs(error - module["relative_error"]) - slack
        if off > furthest:
            worst, furthest = path, off
    check(f"{name} ({base_name}): errors", furthest <= 1e-4, f"{len(report['modules'])} modules, {len(report['whole'])} tensors whole, "
          f"printed and found errors at most {max(furthest, 0):.1e} apart {worst}")
    if "full" not in name and name != "energy":
        difference, change = gap(found, expected), gap(hf_logits(load(base), PROMPT), expected)
        check(f"{name} ({base_name}): logits", difference <= LOGITS < change, f"max |logit difference| {difference:.1e}, the base's is {change:.1e}")
    else:
        kept = report["totals"]["energy"]
        check(f"{name} ({base_name}): energy", 0.1 < kept < 1 and ("energy" not in name or all(m["energy"] >= 0.5 for m in report["modules"])),
              f"{kept:.3f} kept, ranks {sorted({m['rank'] for m in report['modules']})}")


warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
WORK.mkdir(parents=True)
for name, (base_name, changes, options) in CASES.items():
    try:
        run(name, base_name, changes, options)
    except Exception as error:
        check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
finish("extract")
