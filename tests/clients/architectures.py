"""Converts every architecture to GGUF and back and has real clients load both.

    python architectures.py ATOMBANK_BINARY WORK_DIR

What is compared are the log-probabilities of the whole vocabulary, not greedy tokens: these models have random
weights and near ties at every step. Each check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import numpy as np
import torch
import transformers
import xllamacpp

from common import FIXTURES, WORK, atombank, check, finish, hf_logits, llama_cpp, load_hf

MODELS = FIXTURES / "convert"
DECODERS = ["llama", "llama-rope-llama3", "llama-spm", "llama-spm-json", "llama-pytorch", "mistral", "mixtral", "qwen2",
            "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3", "gpt2", "gpt-neox", "falcon", "stablelm",
            "olmo2", "granite", "starcoder2", "smollm3"]
ENCODERS = ["bert", "roberta", "distilbert", "xlm-roberta"]

# Fields that GGUF has no key for, as llama.cpp computes: `convert` names each of them in a note.
UNSAID = {
    "mistral": {"sliding_window": None},
    "qwen3moe": {"norm_topk_prob": True},
    "gemma2": {"query_pre_attn_scalar": 32},        # llama.cpp scales by a head's width
}
# ggml has one GELU for both, the tanh approximation.
GELU = {
    "gpt-neox": {"hidden_act": "gelu_pytorch_tanh"},
    "falcon": {"activation": "gelu_pytorch_tanh"},
}
CORPUS = [
    "Hello world, hello again.",
    "def f(x):\n    return x + 1\n\n\n",
    "  two  spaces   three    four \t tab",
    "naïve café, Größe, 你好世界, привет, 😀👍🏽",
    "It's we'll I'D 12345 3.14 1,000",
    "x",
]
PROMPT, STEPS, CONTEXT = 90, 4, 128


def log_softmax(logits):
    return torch.log_softmax(torch.tensor(logits), -1).numpy()


def prompt_of(tokenizer, vocab):
    """Tokens from all over the vocabulary, without those that mean something to a server."""
    plain = [i for i in range(vocab) if i not in tokenizer.all_special_ids]
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


def in_llama_cpp(name, path, theirs, tokenizer, limit=1e-3):
    model_vocab = theirs.config.vocab_size
    vocab = min(model_vocab, len(tokenizer)) if name == "gemma3" else model_vocab
    token, prompt = readable(tokenizer, vocab), prompt_of(tokenizer, vocab)
    server = llama_cpp(path, CONTEXT)
    found, _ = llama_cpp_logprobs(server, prompt, token, STEPS, vocab)
    expected = log_softmax(hf_logits(theirs, prompt + [token] * (STEPS - 1))[-STEPS:, :vocab])
    g = gap(found, expected)
    check(f"{name}: llama.cpp", g <= limit, f"max |log-probability difference| {g:.1e} over {STEPS} x {vocab}")
    worst = []
    for text in CORPUS:
        ids = tokenizer(text)["input_ids"]
        found, count = llama_cpp_logprobs(server, text, token, 1, vocab)
        g = gap(found, log_softmax(hf_logits(theirs, ids)[-1:, :vocab]))
        if not (g <= limit and count == len(ids)):
            worst.append(f"{text!r} ({count} for {len(ids)} tokens, {g:.1e})")
    check(f"{name}: llama.cpp's tokens of texts", not worst, ", ".join(worst) or f"{len(CORPUS)} texts")


def same_tokenizer(name, found, expected):
    different = [text for text in CORPUS for special in [True, False]
                 if found(text, add_special_tokens=special)["input_ids"] != expected(text, add_special_tokens=special)["input_ids"]]
    whole = all(found.decode(expected(text)["input_ids"]) == expected.decode(expected(text)["input_ids"]) for text in CORPUS)
    check(f"{name}: tokenizer comes back", not different and whole, ", ".join(map(repr, different)) or (f"{len(CORPUS)} texts" if whole else "decodes otherwise"))


def attempt(name, run, *args):
    try:
        return run(*args)
    except Exception as error:
        check(name, False, f"{type(error).__name__}: {str(error)[:600]}")


def decoder(name):
    model, path, folder = MODELS / name / "model", WORK / f"{name}.gguf", WORK / name
    atombank("convert", model, "-o", path, "--type", "f32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    unsaid = UNSAID.get(name, {})
    attempt(f"{name}: llama.cpp", in_llama_cpp, name, path, load_hf(model, **unsaid, **GELU.get(name, {})), tokenizer)
    atombank("convert", path, "-o", folder)
    back = load_hf(folder)
    original = load_hf(model, **unsaid)
    vocab = min(back.config.vocab_size, original.config.vocab_size)
    prompt = prompt_of(tokenizer, min(vocab, len(tokenizer)))
    g = gap(hf_logits(back, prompt)[:, :vocab], hf_logits(original, prompt)[:, :vocab])
    check(f"{name}: transformers loads what comes back", g <= 1e-3, f"max |logit difference| {g:.1e}")
    same_tokenizer(name, transformers.AutoTokenizer.from_pretrained(folder), tokenizer)


def states(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0].numpy()


def encoder(name):
    model, path, folder = MODELS / name / "model", WORK / f"{name}.gguf", WORK / name
    atombank("convert", model, "-o", path, "--type", "f32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    auto = transformers.AutoModel
    original = load_hf(model, auto)
    prompt = prompt_of(tokenizer, len(tokenizer))
    atombank("convert", path, "-o", folder)
    g = gap(states(load_hf(folder, auto), prompt), states(original, prompt))
    check(f"{name}: transformers loads what comes back", g <= 1e-3, f"max |state difference| {g:.1e}")
    same_tokenizer(name, transformers.AutoTokenizer.from_pretrained(folder), tokenizer)
    server = llama_cpp(path, CONTEXT, embedding=True, pooling_type=xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN)
    for what, given, ids in [("tokens", prompt, prompt)] + [(repr(text), text, tokenizer(text)["input_ids"]) for text in CORPUS]:
        found = np.array(server.handle_embeddings({"input": given})["data"][0]["embedding"])
        mean = states(original, ids).mean(0)
        g = gap(found, mean / np.linalg.norm(mean))
        check(f"{name}: llama.cpp embeds {what}", g <= 1e-3, f"max |difference| {g:.1e}")


def main():
    WORK.mkdir(parents=True)
    for name in DECODERS:
        attempt(name, decoder, name)
    for name in ENCODERS:
        attempt(name, encoder, name)
    finish("architectures")


main()
