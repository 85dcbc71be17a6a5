"""What the scripts of this folder share: the binary, checks and how clients are called."""
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
import xllamacpp

BINARY, WORK = sys.argv[1], Path(sys.argv[2])
FIXTURES = Path("fixtures")
PROMPT = 90                             # tokens of a prompt from all over the vocabulary
results = []


def check(name, passed, detail):
    results.append(bool(passed))
    print(f"{'ok    ' if passed else 'FAILED'} {name}: {detail}", flush=True)


def finish(title):
    """The last line, and the exit code."""
    print(f"{title}: {sum(results)} passed, {len(results) - sum(results)} failed")
    sys.exit(0 if results and all(results) else 1)


def atombank(*args):
    run = subprocess.run([BINARY, *map(str, args)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"atombank {' '.join(map(str, args))}: {run.stderr.strip()}")
    return run.stdout


class Gelu(torch.nn.Module):
    """ggml's GELU on a CPU: the tanh approximation whatever the model asks for, out of a table of f16."""

    def forward(self, x):
        rounded = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, rounded))


def with_ggml_gelu(model):
    for module in list(model.modules()):
        for name, child in module.named_children():
            if "gelu" in type(child).__name__.lower():
                setattr(module, name, Gelu())
    return model


def llama_cpp(path, n_ctx, **params):
    """A server with the file loaded, one sequence at a time."""
    p = xllamacpp.CommonParams()
    p.model.path = str(path)
    p.n_ctx = n_ctx
    p.n_parallel = 1
    p.n_gpu_layers = 0
    p.warmup = False
    # ggml's threads wait for each other without a pause, which takes long where others use the cores.
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
    p.fit_params = False
    # By default keys and values are kept in f16, which decides near ties: not a matter of the file.
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    for name, value in params.items():
        setattr(p, name, value)
    return xllamacpp.Server(p)


def hf_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def load_hf(path, auto=transformers.AutoModelForCausalLM, **config):
    """The model in f32; keyword arguments are fields of its config set to other values."""
    return auto.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", **config).eval()


def compare_logits(name, found, expected, limit=1e-3):
    difference = gap(found, expected)
    check(name, difference <= limit, f"max |logit difference| {difference:.1e} over {len(found)} tokens")


def log_softmax(logits):
    return torch.log_softmax(torch.tensor(logits), -1).numpy()


def prompt_of(tokenizer, vocab):
    """Tokens from all over the vocabulary, without those that mean something to a server."""
    plain = [i for i in range(min(vocab, len(tokenizer))) if i not in tokenizer.all_special_ids]
    return [plain[(i * 37 + 11) % len(plain)] for i in range(PROMPT)]


def readable(tokenizer, vocab):
    """A token that is a whole character: the server reports no others."""
    plain = (i for i in range(vocab) if i not in tokenizer.all_special_ids)
    return next(i for i in plain if tokenizer.decode([i]).strip().isalpha() and tokenizer.decode([i]).isascii())


def llama_cpp_logprobs(server, prompt, token, steps, vocab):
    """Log-probabilities of the vocabulary behind the prompt and behind each `token` that follows it.

    They are taken before sampling, so a bias that has `token` sampled doesn't change them.
    """
    answer = server.handle_completions({"prompt": prompt, "n_predict": steps, "temperature": 0, "n_probs": vocab,
                                        "cache_prompt": False, "logit_bias": [[token, 1000]]})
    found = np.full((steps, vocab), np.nan, np.float32)
    content = answer["choices"][0]["logprobs"]["content"]
    assert [t["id"] for t in content] == [token] * steps, content
    for row, reported in zip(found, content):
        for t in reported["top_logprobs"]:
            row[t["id"]] = t["logprob"]
    return found, answer["usage"]["prompt_tokens"]


def gap(found, expected):
    return float(np.abs(found - expected).max())        # NaN, which nothing is below, where one is missing
