"""Makes files with atombank and has real clients load them.

    python check.py ATOMBANK_BINARY WORK_DIR

Each check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import json

import gguf
import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file

from common import FIXTURES, WORK, atombank, check, compare_logits, finish, hf_logits, llama_cpp, load_hf

BASE = FIXTURES / "demo" / "base"
INSTRUCTION, PROMPT = "Reverse the letters.", "borata"
TOKENS = 64


def ours(model, *args, instruction=INSTRUCTION, tokens=TOKENS):
    """Our own logits over the prompt and greedy continuation."""
    folder = WORK / f"logits-{len(list(WORK.glob('logits-*')))}"
    out = json.loads(atombank("generate", model, "--instruction", instruction, "--prompt", PROMPT, "--max-tokens", tokens,
                              "--ignore-eos", "--json", "--save-logits", folder, *args))
    return out["prompt_ids"], out["ids"], load_file(folder / "logits.safetensors")["logits"]


def same_tokens(name, path, prompt_ids, expected, tokenizer):
    """llama.cpp's greedy continuation against ours.

    Its server stops behind an end-of-text token, so it is asked to go on from there, as ours does; and it reports
    no token that is half of a character, so those are known by their number alone.
    """
    server, count = llama_cpp(path, 256), len(expected)
    seen, done = [], 0
    while done < count:
        answer = server.handle_completions({"prompt": prompt_ids + expected[:done], "n_predict": count - done, "temperature": 0,
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
    check(name, done == count and fits and at == len(seen), f"{count} greedy tokens, {len(seen)} of them reported"
          if fits and at == len(seen) else f"ours {expected}, theirs {seen}")


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
    check("baked equals routed", prompt_ids == routed_ids and tokens == routed_tokens, f"the same {TOKENS} greedy tokens")
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
        prompt_ids, tokens, logits = ours(model, instruction="return the value of self", tokens=32)
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
finish("clients")
