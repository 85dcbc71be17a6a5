"""Makes LoRA adapters with PEFT, converts them with atombank, and has llama.cpp apply them to the base's GGUF.

    python lora.py ATOMBANK_BINARY WORK_DIR

llama.cpp has to continue a prompt with the greedy tokens of base and adapter in PEFT, and give them the same
log-probabilities; so has PEFT with the folder that atombank makes of the GGUF. Each check prints a line; the last line
counts them. Exit code 1 where one failed.
"""
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
import xllamacpp

BINARY, WORK = sys.argv[1], Path(sys.argv[2])
FIXTURES = Path("fixtures/convert")
TOKENS, TOLERANCE = 24, 2e-3
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
results = []

# Name: base, LoraConfig.
CASES = {
    "plain": ("llama", dict(r=4, lora_alpha=8, target_modules=ATTENTION + ["gate_proj", "up_proj", "down_proj"])),
    "rank-stabilized": ("llama", dict(r=8, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"])),
    "patterns": ("llama", dict(r=4, lora_alpha=6, target_modules=ATTENTION, rank_pattern={"layers.0.self_attn.q_proj": 2, "[kv]_proj": 6},
                               alpha_pattern={"layers.1.self_attn.*": 3, "v_proj": 9.5})),
    "rank-stabilized-patterns": ("llama", dict(r=4, lora_alpha=6, use_rslora=True, target_modules=ATTENTION + ["down_proj"],
                                               rank_pattern={"k_proj": 8}, alpha_pattern={"down_proj": 2})),
    "zero-alpha": ("llama", dict(r=4, lora_alpha=0, target_modules=["q_proj", "v_proj"], alpha_pattern={"v_proj": 8})),
    "embeddings": ("llama", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head", "q_proj"])),
    "qwen2": ("qwen2", dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "k_proj", "up_proj"])),
    "qwen3": ("qwen3", dict(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj"], rank_pattern={"o_proj": 3})),
    "conv1d": ("gpt2", dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc", "c_proj"])),
    "headwise-qkv": ("gpt-neox", dict(r=4, lora_alpha=8, target_modules=["query_key_value", "dense"])),
    "grouped-qkv": ("falcon", dict(r=4, lora_alpha=8, target_modules=["query_key_value", "dense", "dense_4h_to_h"])),
    "fused": ("phi3", dict(r=4, lora_alpha=8, target_modules=["qkv_proj", "gate_up_proj"])),
}


def check(name, passed, detail):
    results.append(passed)
    print(f"{'ok    ' if passed else 'FAILED'} {name}: {detail}", flush=True)


def atombank(*args):
    run = subprocess.run([BINARY, *map(str, args)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"atombank {' '.join(map(str, args))}: {run.stderr.strip()}")


def load(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()


def make_adapter(base, settings, folder):
    torch.manual_seed(7)
    model = peft.get_peft_model(load(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, value in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.15)
    model.save_pretrained(folder)


def greedy(model, prompt):
    """Greedy tokens and the log-probability of each."""
    ids, scores = list(prompt), []
    with torch.no_grad():
        for _ in range(TOKENS):
            logits = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1)
            ids.append(int(logits.argmax()))
            scores.append(float(logits.max()))
    return ids[len(prompt):], scores


def llama_cpp(name, base, adapter, prompt, tokens, scores):
    """One token at a time behind the right ones before it; half of a character is a token that isn't reported."""
    p = xllamacpp.CommonParams()
    p.model.path = str(base)
    if adapter:
        p.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    p.n_ctx = 256
    p.n_gpu_layers = 0
    p.warmup = False
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(p)
    seen, wrong, gap = 0, [], 0.0
    for i, (token, score) in enumerate(zip(tokens, scores)):
        answer = server.handle_completions({"prompt": prompt + tokens[:i], "n_predict": 1, "temperature": 0, "n_probs": 1,
                                            "cache_prompt": False})
        for found in (answer["choices"][0]["logprobs"] or {}).get("content") or []:
            seen += 1
            gap = max(gap, abs(found["logprob"] - score))
            if found["id"] != token:
                wrong.append((i, token, found["id"]))
    fits = seen >= TOKENS // 2 and not wrong and gap <= TOLERANCE
    check(name, fits, f"{seen} of {TOKENS} greedy tokens reported, max |log-probability difference| {gap:.1e}, other tokens {wrong}")


WORK.mkdir(parents=True)
bases = {}
for name in sorted({base for base, _ in CASES.values()}):
    bases[name] = WORK / f"{name}.gguf"
    atombank("convert", FIXTURES / name / "model", "-o", bases[name], "--type", "f32")
for name, (base, settings) in CASES.items():
    folder, adapter, back = FIXTURES / base / "model", WORK / name, WORK / f"{name}-back"
    make_adapter(folder, settings, adapter)
    prompt = transformers.AutoTokenizer.from_pretrained(folder)("return the value of self")["input_ids"]
    plain, _ = greedy(load(folder), prompt)
    tokens, scores = greedy(peft.PeftModel.from_pretrained(load(folder), adapter).eval(), prompt)
    check(f"{name}: the adapter matters", tokens != plain, "the base alone goes on otherwise")
    atombank("convert", adapter, "--base", folder, "-o", WORK / f"{name}.lora.gguf", "--type", "f32")
    llama_cpp(f"{name}: llama.cpp", bases[base], WORK / f"{name}.lora.gguf", prompt, tokens, scores)
    atombank("merge", folder, adapter, "-o", WORK / f"{name}-merged.gguf", "--type", "f32")
    llama_cpp(f"{name}: llama.cpp, merged", WORK / f"{name}-merged.gguf", None, prompt, tokens, scores)
    atombank("convert", WORK / f"{name}.lora.gguf", "--base", folder, "-o", back)
    again, back_scores = greedy(peft.PeftModel.from_pretrained(load(folder), back).eval(), prompt)
    gap = max(abs(a - b) for a, b in zip(scores, back_scores))
    check(f"{name}: peft loads the folder made of the GGUF", again == tokens and gap <= 1e-4, f"{TOKENS} greedy tokens, gap {gap:.1e}")
print(f"lora: {sum(results)} passed, {len(results) - sum(results)} failed")
sys.exit(0 if all(results) else 1)
