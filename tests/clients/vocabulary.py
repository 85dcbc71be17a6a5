"""Trains tokens into adapters with PEFT, on models whose embeddings were resized, and merges them with atombank.

    python vocabulary.py ATOMBANK_BINARY WORK_DIR

The base is the model before it was resized. What atombank makes has to be what PEFT makes of the resized base, bit by bit;
transformers has to continue a text with the same tokens as PEFT, and llama.cpp to give them the same log-probabilities. The last check has vLLM's file of new
embeddings, which PEFT doesn't know. Each check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import shutil
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from common import (FIXTURES, WORK, atombank, check, finish, gap, hf_logits, llama_cpp, llama_cpp_logprobs, log_softmax,
                    readable)

NEW = ["<first>", "<second>", "<third>"]
STEPS = 12
LIMIT = 1e-3                            # of log-probabilities in llama.cpp
QUERY = dict(target_modules=["q_proj"])


def lora(**settings):
    return peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, **{**QUERY, **settings})


def rows(base, *more):
    first = 320 if base == "llama" else 384
    return [*more, first, first + 1, first + 2]


# Name: base, config, save_embedding_layers, number of tokens more.
CASES = {
    "auto": ("llama", lora(), "auto", 3),
    "auto-padded": ("llama", lora(), "auto", 64),
    "auto-fewer": ("wide", lora(), "auto", -24),
    "auto-tied": ("demo", lora(), "auto", 3),
    "targets": ("llama", lora(target_modules=["q_proj", "embed_tokens", "lm_head"]), "auto", 3),
    "targets-dora": ("llama", lora(target_modules=["q_proj", "embed_tokens", "lm_head"], use_dora=True), True, 3),
    "saved": ("llama", lora(modules_to_save=["embed_tokens", "lm_head"]), "auto", 3),
    "saved-alone": ("llama", lora(modules_to_save=["embed_tokens", "lm_head"]), False, 3),
    "saved-fewer": ("wide", lora(modules_to_save=["embed_tokens", "lm_head"]), "auto", -24),
    "saved-tied": ("demo", lora(modules_to_save=["embed_tokens"]), "auto", 3),
    "saved-together": ("demo", lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True), "auto", 3),
    "rows": ("llama", lora(trainable_token_indices={"embed_tokens": rows("llama", 5), "lm_head": rows("llama")}), "auto", 3),
    "rows-alone": ("llama", lora(trainable_token_indices={"embed_tokens": rows("llama", 5), "lm_head": rows("llama")}), False, 3),
    "rows-tied": ("demo", lora(trainable_token_indices=rows("demo", 7)), False, 3),
    "tokens": ("llama", peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=rows("llama", 9),
                                                   target_modules=["embed_tokens", "lm_head"]), False, 3),
    "tokens-tied": ("demo", peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=rows("demo")), "auto", 3),
    "loha": ("llama", peft.LoHaConfig(task_type="CAUSAL_LM", r=2, alpha=4, **QUERY), "auto", 3),
    "loha-head": ("llama", peft.LoHaConfig(task_type="CAUSAL_LM", r=2, alpha=4, target_modules=["q_proj", "lm_head"],
                                           modules_to_save=["embed_tokens"]), True, 3),
    "ia3": ("llama", peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]), "auto", 3),
    "vera": ("llama", peft.VeraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"],
                                      modules_to_save=["embed_tokens", "lm_head"]), "auto", 3),
}


def folder_of(base):
    return FIXTURES / ("demo/base" if base == "demo" else "convert/llama/model")


def load(folder, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def in_f32(base):
    """A copy of the base in f32, so that bits can be compared; tokenizer too."""
    folder = WORK / f"base-{base}"
    if not folder.is_dir():
        model = load(folder_of(base))
        if base == "wide":              # rows without a token, which an adapter can be trained without
            model.resize_token_embeddings(344)
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(folder_of(base)).save_pretrained(folder)
    return folder


def make_adapter(base, config, save, more, folder):
    torch.manual_seed(len(folder.name))
    model = load(in_f32(base))
    model.resize_token_embeddings(model.config.vocab_size + more)
    if save is not False:
        # Rows that were trained before they are saved whole.
        for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
            module.weight.data[-abs(more):] += torch.randn(abs(more), module.weight.shape[1]) * 0.05
    model = peft.get_peft_model(model, config)
    for name, value in model.named_parameters():
        if value.requires_grad:
            value.data += torch.randn_like(value) * (0.02 if "modules_to_save" in name else 0.05)
    model.save_pretrained(folder, save_embedding_layers=save)
    tokenizer = transformers.AutoTokenizer.from_pretrained(in_f32(base))
    if more > 0:
        tokenizer.add_tokens(NEW)
        tokenizer.save_pretrained(folder)


def by_peft(base, adapter, more):
    model = load(in_f32(base))
    model.resize_token_embeddings(model.config.vocab_size + more, mean_resizing=False)
    return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()


def continued(model, prompt):
    ids = torch.tensor([prompt])
    made = model.generate(ids, max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0,
                          attention_mask=torch.ones_like(ids))
    return made[0, len(prompt):].tolist()


def in_llama_cpp(name, file, model, prompt, tokenizer):
    """The log-probabilities behind the prompt and one more token, beside those of PEFT's model."""
    size = model.config.vocab_size
    token = readable(tokenizer, min(size, 300))
    found, count = llama_cpp_logprobs(llama_cpp(file, 128), prompt, token, 2, size)
    expected = log_softmax(hf_logits(model, [*prompt, token])[-2:])
    difference = gap(found, expected)
    check(f"{name} in llama.cpp", difference <= LIMIT and count == len(prompt), f"max |logprob difference| {difference:.1e}")


def same_weights(found, expected, tied):
    """The names of the tensors that differ. A tied head needn't be there."""
    names = set(expected) - ({"lm_head.weight"} if tied and "lm_head.weight" not in found else set())
    differ = sorted(set(found) ^ names)
    return differ or [name for name in names if not torch.equal(found[name], expected[name])]


def by_configuration(name, base, folder, expected, tied, more):
    """The model with its adapter, as one model of a configuration of mergekit, which can't load such an adapter itself."""
    file = folder / "merge.yml"
    file.write_text(f"merge_method: linear\nmodels:\n- model: {in_f32(base)}+{folder / 'adapter'}\n  parameters: {{weight: 1}}\n")
    atombank("merge", "--config", file, "-o", folder / "by-configuration")
    differ = same_weights(load_file(folder / "by-configuration" / "model.safetensors"), expected, tied)
    known = set(transformers.AutoTokenizer.from_pretrained(folder / "by-configuration").get_vocab())
    differ += [token for token in NEW if more > 0 and token not in known]
    check(f"{name} in a configuration", not differ, "the bits of PEFT, and the adapter's tokens" if not differ else f"others: {differ[:3]}")


def run(name):
    base, config, save, more = CASES[name]
    folder = WORK / name
    make_adapter(base, config, save, more, folder / "adapter")
    atombank("merge", in_f32(base), folder / "adapter", "-o", folder / "merged")
    model = by_peft(base, folder / "adapter", more)
    merged = load_file(folder / "merged" / "model.safetensors")
    expected = {key: value for key, value in model.state_dict().items() if "rotary" not in key}
    tied = base == "demo" and torch.equal(expected["lm_head.weight"], expected["model.embed_tokens.weight"])
    differ = same_weights(merged, expected, tied)
    check(name, not differ, "the bits of PEFT" if not differ else f"others than PEFT's: {differ[:3]}")
    by_configuration(name, base, folder, expected, tied, more)
    loaded = load(folder / "merged")
    size = expected["model.embed_tokens.weight"].shape[0]
    check(f"{name} loaded", loaded.config.vocab_size == size, f"vocab_size {loaded.config.vocab_size}")
    prompt = [5, 17, 31] + ([size - 1, size - 2] if more > 0 else [size - 1])
    answer = continued(model, prompt)
    check(f"{name} generates", continued(loaded, prompt) == answer, f"{answer[:6]} ..")
    atombank("merge", in_f32(base), folder / "adapter", "-o", folder / "merged.gguf", "--type", "f32")
    in_llama_cpp(name, folder / "merged.gguf", model, prompt, transformers.AutoTokenizer.from_pretrained(in_f32(base)))
    shutil.rmtree(folder)


def new_embeddings():
    """vLLM: rows of added tokens in a file of their own, behind the base's."""
    folder = WORK / "new-embeddings"
    base = in_f32("llama")
    model = peft.get_peft_model(load(base), lora())
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    new = {name: torch.randn(3, 256) * 0.05 for name in ["input_embeddings", "output_embeddings"]}
    save_file(new, folder / "adapter" / "new_embeddings.safetensors")
    atombank("merge", base, folder / "adapter", "-o", folder / "merged")
    found, own = load_file(folder / "merged" / "model.safetensors"), load_file(base / "model.safetensors")
    passed = all(torch.equal(found[tensor], torch.cat([own[tensor], new[name]])) for tensor, name in
                 [("model.embed_tokens.weight", "input_embeddings"), ("lm_head.weight", "output_embeddings")])
    check("new embeddings", passed, "the base's rows, then those of the file")
    check("new embeddings loaded", load(folder / "merged").config.vocab_size == 323, "vocab_size 323")


WORK.mkdir(parents=True, exist_ok=True)
for case in sys.argv[3:] or CASES:
    try:
        run(case)
    except Exception as error:
        check(case, False, repr(error)[:500])
if not sys.argv[3:]:
    new_embeddings()
finish("vocabulary")
