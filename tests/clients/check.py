"""Makes files with atombank and has real clients load them.

    python check.py ATOMBANK_BINARY WORK_DIR

Each check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import peft
import torch
import transformers
import xllamacpp
from safetensors.numpy import load_file

BINARY, WORK = sys.argv[1], Path(sys.argv[2])
FIXTURES = Path("fixtures")
BASE = FIXTURES / "demo" / "base"
INSTRUCTION, PROMPT = "Reverse the letters.", "borata"
TOKENS = 32
results = []


def check(name, passed, detail):
    results.append(passed)
    print(f"{'ok    ' if passed else 'FAILED'} {name}: {detail}", flush=True)


def atombank(*args):
    run = subprocess.run([BINARY, *map(str, args)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"atombank {' '.join(map(str, args))}: {run.stderr.strip()}")
    return run.stdout


def ours(model, *args, instruction=INSTRUCTION):
    """Our own logits over the prompt and greedy continuation of 32 tokens."""
    folder = WORK / f"logits-{len(list(WORK.glob('logits-*')))}"
    out = json.loads(atombank("generate", model, "--instruction", instruction, "--prompt", PROMPT, "--max-tokens", TOKENS,
                              "--ignore-eos", "--json", "--save-logits", folder, *args))
    return out["prompt_ids"], out["ids"], load_file(folder / "logits.safetensors")["logits"]


def same_tokens(name, path, prompt_ids, expected, tokenizer):
    """llama.cpp's greedy continuation against ours.

    Its server stops behind an end-of-text token, so it is asked to go on from there, as ours does; and it reports
    no token that is half of a character, so those are known by their number alone.
    """
    p = xllamacpp.CommonParams()
    p.model.path = str(path)
    p.n_ctx = 256
    p.n_gpu_layers = 0
    p.warmup = False
    # By default keys and values are kept in f16, which decides near ties: not a matter of the file.
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(p)
    seen, done = [], 0
    while done < TOKENS:
        answer = server.handle_completions({"prompt": prompt_ids + expected[:done], "n_predict": TOKENS - done, "temperature": 0,
                                            "n_probs": 1, "cache_prompt": False})
        seen += [t["id"] for t in (answer["choices"][0]["logprobs"] or {}).get("content") or []]
        new = answer["usage"]["completion_tokens"]
        if new == 0:
            break
        done += new
    whole = ["\ufffd" not in tokenizer.decode([t], skip_special_tokens=False) for t in expected]
    at, fits = 0, True
    for i, token in enumerate(expected):
        if at < len(seen) and seen[at] == token:
            at += 1
        else:                       # unreported: half of a character, or joined with such a half before it
            fits &= not whole[i] or (i > 0 and not whole[i - 1])
    check(name, done == TOKENS and fits and at == len(seen), f"{TOKENS} greedy tokens, {len(seen)} of them reported"
          if fits and at == len(seen) else f"ours {expected}, theirs {seen}")


def hf_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def load_hf(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def compare_logits(name, found, expected):
    gap = float(np.abs(found - expected).max())
    check(name, gap <= 1e-3, f"max |logit difference| {gap:.1e} over {len(found)} tokens")


def adapters():
    common = ["--quiet", "--set", "training.steps=24", "--set", "training.eval_every=0"]
    bank, lora = WORK / "bank", WORK / "plain-lora"
    atombank("train", FIXTURES / "demo/bank.toml", "--set", f"output={bank}", *common)
    atombank("train", FIXTURES / "demo/lora.toml", "--set", f"output={lora}", *common)
    return bank, lora


def baked(bank):
    request = ["--instruction", INSTRUCTION, "--prompt", PROMPT]
    folder, static = WORK / "baked", WORK / "static-lora"
    atombank("bake", BASE, bank, *request, "-o", folder, "--type", "f32")
    atombank("bake", BASE, bank, *request, "-o", static, "--to", "lora")
    prompt_ids, tokens, logits = ours(folder)
    routed_ids, routed_tokens, routed = ours(BASE, "--adapter", bank)
    check("baked equals routed", prompt_ids == routed_ids and tokens == routed_tokens, "the same 32 greedy tokens")
    compare_logits("baked against routed", logits, routed)
    model = load_hf(folder)
    compare_logits("transformers loads the baked folder", hf_logits(model, prompt_ids), logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = f"{INSTRUCTION}\n{PROMPT}\n"
    check("the copied tokenizer agrees", tokenizer(text)["input_ids"] == prompt_ids, f"{len(prompt_ids)} tokens")
    with_lora = peft.PeftModel.from_pretrained(load_hf(BASE), static).eval()
    compare_logits("peft loads the static LoRA", hf_logits(with_lora, prompt_ids), logits)
    for outtype in ["f32", "f16", "bf16", "q8_0"]:
        path = WORK / f"baked-{outtype}.gguf"
        atombank("bake", BASE, bank, *request, "-o", path, "--type", outtype)
        if outtype == "f32":
            same_tokens("llama.cpp continues the f32 GGUF as we do", path, prompt_ids, tokens, tokenizer)
        else:                       # rounded weights may decide a tie otherwise: the word itself is learnt well enough
            same_tokens(f"llama.cpp answers from the {outtype} GGUF", path, prompt_ids, tokens, tokenizer)
        reader = gguf.GGUFReader(path)
        check(f"gguf-py reads the {outtype} GGUF", len(reader.tensors) == 38, f"{len(reader.tensors)} tensors")


def plain_lora(lora):
    prompt_ids, _, logits = ours(BASE, "--adapter", lora)
    with_lora = peft.PeftModel.from_pretrained(load_hf(BASE), lora).eval()
    compare_logits("peft loads the trained LoRA", hf_logits(with_lora, prompt_ids), logits)


def architectures():
    for name in ["llama", "llama-rope-llama3", "mistral", "qwen2", "qwen3"]:
        model = FIXTURES / "convert" / name / "model"
        prompt_ids, tokens, logits = ours(model, instruction="return the value of self")
        theirs = load_hf(model)
        compare_logits(f"{name}: transformers", hf_logits(theirs, prompt_ids), logits)
        path = WORK / f"{name}.gguf"
        atombank("convert", model, "-o", path, "--type", "f32")
        same_tokens(f"{name}: llama.cpp", path, prompt_ids, tokens, transformers.AutoTokenizer.from_pretrained(model))


WORK.mkdir(parents=True)
bank, lora = adapters()
baked(bank)
plain_lora(lora)
architectures()
print(f"clients: {sum(results)} passed, {len(results) - sum(results)} failed")
sys.exit(0 if all(results) else 1)
