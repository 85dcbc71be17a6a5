"""Converts every architecture to GGUF and back and has real clients load both.

    python architectures.py ATOMBANK_BINARY WORK_DIR

What is compared are the log-probabilities of the whole vocabulary, not greedy tokens: these models have random
weights and near ties at every step. Each check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import json
import shutil

import gguf
import numpy as np
import torch
import transformers
import xllamacpp
from safetensors.torch import load_file

from common import (FIXTURES, WORK, atombank, check, finish, gap, hf_logits, llama_cpp, llama_cpp_logprobs, load_hf, log_softmax,
                    prompt_of, readable, with_ggml_gelu)

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
# Classes that read these folders' tokenizer.model as llama.cpp does. AutoTokenizer goes by what the fixtures' configs
# say, which the makers of such models don't: Gemma has no space before a text, Phi-3 has one.
TOKENIZERS = {
    "gemma": transformers.GemmaTokenizer,
    "gemma2": transformers.GemmaTokenizer,
    "phi3": transformers.LlamaTokenizer,
}
CORPUS = [
    "Hello world, hello again.",
    "def f(x):\n    return x + 1\n\n\n",
    "  two  spaces   three    four \t tab",
    "naïve café, Größe, 你好世界, привет, 😀👍🏽",
    "It's we'll I'D 12345 3.14 1,000",
    "x",
]
# Texts in which the fixture's tokenizer and llama.cpp find other tokens, for reasons of their own.
OTHERWISE = {
    # transformers 5 puts no space before a text that begins with one when it reads tokenizer.model; SentencePiece,
    # llama.cpp and the tokenizer.json that Phi-3 comes with all do.
    "phi3": CORPUS[2:3],
}
LLAMA_CPP_OTHERWISE = {
    # A tokenizer.json has an order of merges and no scores; the reference writes the same score for every token.
    "llama-spm-json": CORPUS[0:1],
}
STEPS, CONTEXT = 4, 128


def with_norms_of_f16(model):
    """Gemma's norms as the converter and its reference make them out of f16: 1 is added in that type."""
    state = {name: (1 + w).half().float() - 1 if "norm" in name and w.dim() == 1 else w for name, w in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def in_llama_cpp(name, path, theirs, tokenizer, texts=(), limit=1e-3, **params):
    # Gemma 3's embedding may have rows past the tokenizer's, which aren't in the file.
    vocab = len(gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].data)
    token, prompt = readable(tokenizer, vocab), prompt_of(tokenizer, vocab)
    server = llama_cpp(path, CONTEXT, **params)
    found, _ = llama_cpp_logprobs(server, prompt, token, STEPS, vocab)
    expected = log_softmax(hf_logits(theirs, prompt + [token] * (STEPS - 1))[-STEPS:, :vocab])
    difference = gap(found, expected)
    check(name, difference <= limit, f"max |log-probability difference| {difference:.1e} over {STEPS} x {vocab}")
    # What the model says behind a text shows that both read the same tokens in it.
    others = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        found, count = llama_cpp_logprobs(server, text, token, 1, vocab)
        difference = gap(found, log_softmax(hf_logits(theirs, ids)[-1:, :vocab]))
        if not (difference <= limit and count == len(ids)):
            others.append(f"{text!r} ({count} for {len(ids)} tokens, {difference:.1e})")
    if texts:
        check(f"{name} reads texts", not others, ", ".join(others) or f"the tokens of {len(texts)} texts")


def same_tokenizer(name, found, expected, texts):
    others = [text for text in texts for special in [True, False]
              if found(text, add_special_tokens=special)["input_ids"] != expected(text, add_special_tokens=special)["input_ids"]]
    others += [text for text in texts if found.decode(expected(text)["input_ids"]) != expected.decode(expected(text)["input_ids"])]
    check(f"{name}: the tokenizer comes back", not others, ", ".join(map(repr, others)) or f"{len(texts)} texts there and back")


def in_gguf_py(name, path):
    """The reference's own list of tensors, from the fixture, against what its reader finds."""
    expected = json.loads((MODELS / name / "expected" / "f32.json").read_text())["tensors"]
    expected = {name: tensor["shape"] for name, tensor in expected.items()}
    found = {t.name: [int(n) for n in t.shape] for t in gguf.GGUFReader(path).tensors}
    check(f"{name}: gguf-py", found == expected, f"{len(found)} tensors, {len(expected)} expected")


def attempt(name, run, *args, **named):
    """A client that fails altogether fails this check, not the others."""
    try:
        run(*args, **named)
    except Exception as error:
        check(name, False, f"{type(error).__name__}: {str(error)[:600]}")


def decoder(name):
    model, path, folder = MODELS / name / "model", WORK / f"{name}.gguf", WORK / name
    tokenizer = TOKENIZERS.get(name, transformers.AutoTokenizer).from_pretrained(model)
    texts = [text for text in CORPUS if text not in OTHERWISE.get(name, [])]
    original = load_hf(model, **UNSAID.get(name, {}))
    if name == "gemma2":
        original = with_norms_of_f16(original)
    atombank("convert", model, "-o", path, "--type", "f32")
    in_gguf_py(name, path)
    atombank("convert", path, "-o", folder)
    back = load_hf(folder)
    vocab = min(back.config.vocab_size, original.config.vocab_size)
    prompt = prompt_of(tokenizer, vocab)
    difference = gap(hf_logits(back, prompt)[:, :vocab], hf_logits(original, prompt)[:, :vocab])
    check(f"{name}: transformers loads what comes back", difference <= 1e-3, f"max |logit difference| {difference:.1e}")
    same_tokenizer(name, transformers.AutoTokenizer.from_pretrained(folder), tokenizer, texts)
    if name == "smollm3":
        path, original = smollm3_without_bias(model)
    attempt(f"{name}: llama.cpp", in_llama_cpp, f"{name}: llama.cpp", path, with_ggml_gelu(original), tokenizer,
            [text for text in texts if text not in LLAMA_CPP_OTHERWISE.get(name, [])])


def smollm3_without_bias(model):
    """The fixture has biases in its feed-forward layers, which llama.cpp's SmolLM3 can't load."""
    folder, path = WORK / "smollm3-without-bias", WORK / "smollm3-without-bias.gguf"
    copied_tokenizer(model, folder)
    plain = load_hf(model, mlp_bias=False)
    plain.save_pretrained(folder)
    atombank("convert", folder, "-o", path, "--type", "f32")
    return path, plain


def copied_tokenizer(model, folder):
    folder.mkdir()
    for file in model.iterdir():
        if "token" in file.name or file.name.endswith((".jinja", ".bpe.model")):
            shutil.copy(file, folder)


def states(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0].numpy()


def encoder(name):
    model, path, folder = MODELS / name / "model", WORK / f"{name}.gguf", WORK / name
    auto = transformers.AutoModel
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    original = load_hf(model, auto)
    if name == "xlm-roberta":
        # The fixture has no tokenizer.json, the only place where the reference looks for the ids of <unk> and <mask>
        # and for what stands around a text. Models that are out there have one.
        model = WORK / "xlm-roberta-with-json"
        copied_tokenizer(MODELS / name / "model", model)
        tokenizer.save_pretrained(model)
        original.save_pretrained(model)
    atombank("convert", model, "-o", path, "--type", "f32")
    if name != "xlm-roberta":
        in_gguf_py(name, path)
    atombank("convert", path, "-o", folder)
    prompt = prompt_of(tokenizer, len(tokenizer))
    difference = gap(states(load_hf(folder, auto), prompt), states(original, prompt))
    check(f"{name}: transformers loads what comes back", difference <= 1e-3, f"max |state difference| {difference:.1e}")
    same_tokenizer(name, transformers.AutoTokenizer.from_pretrained(folder), tokenizer, CORPUS)
    server = llama_cpp(path, CONTEXT, embedding=True, pooling_type=xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN)
    original, largest = with_ggml_gelu(original), 0.0
    for given, ids in [(prompt, prompt)] + [(text, tokenizer(text)["input_ids"]) for text in CORPUS]:
        found = np.array(server.handle_embeddings({"input": given})["data"][0]["embedding"])
        mean = states(original, ids).mean(0)
        difference = gap(found, mean / np.linalg.norm(mean))
        largest = max(largest, difference) if difference == difference else difference
    check(f"{name}: llama.cpp embeds tokens and texts", largest <= 1e-3, f"max |difference| {largest:.1e} over {1 + len(CORPUS)}")


def other_types():
    """Types, splitting and PyTorch files, of one model."""
    model = MODELS / "llama" / "model"
    tokenizer, original = transformers.AutoTokenizer.from_pretrained(model), load_hf(model)
    # Both have the rounded weights, transformers through the way back. ggml rounds the activations to the weights' type
    # as well; the limits leave room for that. Weights in another order are several units off.
    for outtype, limit in [("bf16", 0.2), ("f16", 0.02), ("source", 0.2), ("auto", 0.2), ("q8_0", 0.5)]:
        path, folder = WORK / f"llama-{outtype}.gguf", WORK / f"llama-{outtype}"
        atombank("convert", model, "-o", path, "--type", outtype)
        count = len(gguf.GGUFReader(path).tensors)
        check(f"llama in {outtype}: gguf-py", count == 21, f"{count} tensors")
        atombank("convert", path, "-o", folder, "--type", "f32")
        name = f"llama in {outtype}: llama.cpp"
        attempt(name, in_llama_cpp, name, path, load_hf(folder), tokenizer, limit=limit)
    atombank("convert", model, "-o", WORK / "split.gguf", "--type", "f32", "--split-max-tensors", 8)
    shards = sorted(WORK.glob("split-*.gguf"))
    check("split: gguf-py", [len(gguf.GGUFReader(s).tensors) for s in shards] == [8, 8, 5], f"{len(shards)} files")
    attempt("split: llama.cpp", in_llama_cpp, "split: llama.cpp", shards[0], original, tokenizer, CORPUS)


def source_comes_back():
    """In the source's own types a GGUF keeps a record of what its keys can't say: nothing has to be set here."""
    for name in UNSAID:
        model, path, folder = MODELS / name / "model", WORK / f"{name}-source.gguf", WORK / f"{name}-source"
        atombank("convert", model, "-o", path, "--type", "source")
        atombank("convert", path, "-o", folder)
        prompt = prompt_of(transformers.AutoTokenizer.from_pretrained(model), 300)
        difference = gap(hf_logits(load_hf(folder), prompt), hf_logits(load_hf(model), prompt))
        check(f"{name}: its source type comes back", difference == 0, f"max |logit difference| {difference:.1e}")


def other_containers():
    """Tensors alone as torch.save and safetensors write them."""
    for name in ["llama", "qwen3moe", "llama-pytorch"]:
        model = MODELS / name / "model"
        expected = {}
        for file in model.glob("*.safetensors"):
            expected |= load_file(file)
        if name == "llama-pytorch":
            expected = torch.load(model / "pytorch_model.bin", weights_only=True)
        for end, load in [("bin", lambda path: torch.load(path, weights_only=True)), ("safetensors", load_file)]:
            path = WORK / f"{name}.{end}"
            atombank("convert", model, "-o", path)
            found = load(path)
            same = found.keys() == expected.keys() and all(
                found[k].dtype == expected[k].dtype and torch.equal(found[k], expected[k]) for k in found)
            check(f"{name} as .{end}", same, f"{len(found)} tensors")
    folder = WORK / "llama-in-pytorch"
    atombank("convert", MODELS / "llama" / "model", "-o", folder, "--to", "pytorch")
    found, expected = load_hf(folder).state_dict(), load_hf(MODELS / "llama" / "model").state_dict()
    same = found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)
    check("transformers loads a folder of PyTorch files", same, f"{len(found)} tensors")


WORK.mkdir(parents=True)
for name in DECODERS:
    attempt(name, decoder, name)
for name in ENCODERS:
    attempt(name, encoder, name)
attempt("types", other_types)
attempt("source types", source_comes_back)
attempt("containers", other_containers)
finish("architectures")
