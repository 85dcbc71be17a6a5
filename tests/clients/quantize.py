"""Quantizes with atombank, and has ggml, gguf-py and llama.cpp work on the same: byte by byte, and back.

    python quantize.py ATOMBANK_BINARY WORK_DIR [ELEMENTS]

ggml is fetched once into WORK_DIR's parent. Each check prints a line; the last line counts them. Exit code 1 where one
failed. ELEMENTS is how many numbers of a type are quantized with importance, half as many without.
"""
import enum
import re
import subprocess
import sys

import gguf
import gguf.constants
import gguf.gguf_reader
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from common import (BINARY, FIXTURES, WORK, atombank, check, finish, gap, hf_logits, llama_cpp, llama_cpp_logprobs, load_hf,
                    log_softmax, prompt_of, readable)
from ggml import IMPORTANCE, ROWS, TYPES, Ggml, fetched, in_children, rows

MODEL = FIXTURES / "convert/llama/model"
IMATRIX = FIXTURES / "quant/imatrix/llama.gguf"

# ggml makes them with importance alone; of the others these are refused without it but for embeddings and output.
ALWAYS_LED = ["IQ1_S", "IQ2_XXS", "IQ2_XS"]
USUALLY_LED = ["IQ1_M", "IQ2_S", "IQ3_XXS"]
ELEMENTS = int(sys.argv[3]) if len(sys.argv) > 3 else 1 << 23
HUGE = [1e4, 1e5, 1e6, 1e7, 1e9, 1e20, 1e36, 3e38]          # the largest number of a row
KERNELS = ["scalar"] + ["avx2"] * (" avx2 " in open("/proc/cpuinfo").read())
# gguf-py's releases don't know Q2_0, and can't decode Q1_0.
KNOWN = {t.name: t.value for t in gguf.GGMLQuantizationType} | {"Q2_0": TYPES["Q2_0"].number}
gguf.gguf_reader.GGMLQuantizationType = enum.IntEnum("GGMLQuantizationType", KNOWN)
gguf.constants.GGML_QUANT_SIZES[gguf.gguf_reader.GGMLQuantizationType["Q2_0"]] = TYPES["Q2_0"][1:]
DECODED_BY_GGML_ALONE = ["Q1_0", "Q2_0"]


def importance(rng, kind, matrices, width):
    """Sums and counts, and the numbers that are made of them."""
    counts = rng.integers(1, 1000, (matrices, 1)).astype(np.float32)
    if matrices > 1:
        counts[1] = 0                                   # an expert that was never chosen
    means = IMPORTANCE[kind](rng.standard_normal((matrices, width)), rng)
    sums = (means * np.maximum(counts, 1)).astype(np.float32)
    return sums, counts, np.where(counts == 0, np.float32(1), sums / np.maximum(counts, 1))


def write_model(path, tensors):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    write(writer, tensors)


def write_imatrix(path, entries):
    writer = gguf.GGUFWriter(path, None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["random"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    write(writer, {name + end: value for name, (sums, counts, _) in entries.items() for end, value in [(".in_sum2", sums), (".counts", counts)]})


def write(writer, tensors):
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path):
    """Types and bytes of a file's tensors."""
    return {t.name: (t.tensor_type.name, np.array(t.data)) for t in gguf.GGUFReader(path).tensors}


class Inputs:
    """Files for the types of one block size: widths of one block, of several, of an odd number of them."""

    def __init__(self, elems):
        rng = np.random.default_rng(elems)
        self.led_path, self.plain_path, self.imatrix_path = [WORK / f"{name}-{elems}.gguf" for name in ["led", "plain", "imatrix"]]
        self.led, self.entries = {}, {}
        widths = [elems, 2 * elems, 3 * elems, 8 * elems]
        for layer, kind in enumerate(IMPORTANCE):
            width = widths[layer % 4]
            self.led[f"blk.{layer}.ffn_up.weight"] = rows(rng, ELEMENTS // len(IMPORTANCE) // width, width)
            self.entries[f"blk.{layer}.ffn_up.weight"] = importance(rng, kind, 1, width)
        self.led["blk.0.ffn_up_exps.weight"] = rows(rng, 4 * 36, widths[1]).reshape(4, 36, -1)
        self.entries["blk.0.ffn_up_exps.weight"] = importance(rng, "squares", 4, widths[1])
        # Embeddings and output can go without importance where ggml can.
        names = ["token_embd.weight", "output.weight", "blk.0.ffn_up.weight", "blk.1.ffn_up.weight"]
        self.plain = {name: rows(rng, ELEMENTS // 8 // width, width) for name, width in zip(names, widths)}
        write_model(self.led_path, self.led)
        write_model(self.plain_path, self.plain)
        write_imatrix(self.imatrix_path, self.entries)


def quantized(source, kernel, *args):
    """What atombank makes of a file, or its refusal."""
    out = WORK / "out.gguf"
    run = subprocess.run([BINARY, "quantize", source, "-o", out, "--type", "Q4_0", "--kernel", kernel, "--overwrite", "--quiet",
                          *map(str, args)], capture_output=True, text=True)
    return read(out) if run.returncode == 0 else run.stderr.strip()


def same_blocks(kind, found, expected):
    """Whether all are the same, and a line for the check."""
    if isinstance(found, str):
        return False, f"refused: {found}"
    differing, count = [], 0
    for name, data in expected.items():
        if data is None:
            return False, f"ggml stops at {name}"
        if name not in found or found[name][0] != kind or found[name][1].size != data.size:
            return False, f"{name} is {found.get(name, ['missing'])[0]}"
        ours, theirs = (whole.reshape(-1, TYPES[kind].bytes) for whole in (found[name][1], data))
        other = np.flatnonzero((ours != theirs).any(1))
        count += len(ours)
        if len(other):
            differing.append(f"{name}: {len(other)} of {len(ours)}, first block {other[0]}: {ours[other[0]].tobytes().hex()} for "
                             f"{theirs[other[0]].tobytes().hex()}")
    return not differing, "; ".join(differing) or f"{count} blocks of {len(expected)} tensors"


def against_ggml(kind, inputs):
    calls = [(name, GGML.encoding(kind, values, inputs.entries[name][2])) for name, values in inputs.led.items()]
    expected = dict(zip([name for name, _ in calls], in_children([call for _, call in calls])))
    for kernel in KERNELS:
        found = quantized(inputs.led_path, kernel, "--tensor-type", f".={kind}", "--imatrix", inputs.imatrix_path)
        check(f"{kind} with importance, {kernel}", *same_blocks(kind, found, expected))
    options = ["--token-embedding-type", kind, "--output-tensor-type", kind]
    if kind in ALWAYS_LED:
        found = quantized(inputs.plain_path, "scalar", "--tensor-type", "blk=Q8_0", *options)
        check(f"{kind} without importance", isinstance(found, str) and "expected importance" in found, found if isinstance(found, str) else "made")
        return
    led = "Q8_0" if kind in USUALLY_LED else kind
    plain = {name: values for name, values in inputs.plain.items() if led == kind or not name.startswith("blk")}
    expected = dict(zip(plain, in_children([GGML.encoding(kind, values, None) for values in plain.values()])))
    for kernel in KERNELS:
        found = quantized(inputs.plain_path, kernel, "--tensor-type", f"blk={led}", *options)
        check(f"{kind} without importance, {kernel}", *same_blocks(kind, found, expected))


def huge_rows(kind):
    """Past the range of a type's scales: refused where ggml makes infinities and NaN or stops, else the same bytes."""
    rng, width = np.random.default_rng(7), 2 * TYPES[kind].elems
    path, imatrix = WORK / "huge.gguf", WORK / "huge-imatrix.gguf"
    tensors = {}
    for label in ["normal", "constant", "outlier", "positive", "sparse"]:
        values = rows(rng, 2, width, {label: ROWS[label]}).astype(np.float64)
        for size in HUGE:
            tensors[f"blk.0.{label}_{size:g}.weight"] = (values / (abs(values).max() or 1) * size).astype(np.float32)
    entries = {name: importance(rng, "squares", 1, width) for name in tensors}
    write_imatrix(imatrix, entries)
    made = dict(zip(tensors, in_children([GGML.encoding(kind, values, entries[name][2]) for name, values in tensors.items()])))
    finite = {name: data for name, data in made.items() if data is not None and np.isfinite(GGML.decode(kind, data)).all()}
    write_model(path, {name: tensors[name] for name in finite})
    options = ["--tensor-type", f".={kind}", "--imatrix", imatrix]
    for kernel in KERNELS:
        check(f"{kind}, large rows, {kernel}", *same_blocks(kind, quantized(path, kernel, *options), finite))
    taken = []
    for i, name in enumerate(name for name in tensors if name not in finite):
        write_model(path, {name: tensors[name]})
        found = quantized(path, KERNELS[i % len(KERNELS)], *options)
        if not (isinstance(found, str) and f"a value too large for {kind}" in found):
            taken.append(f"{name} ({found if isinstance(found, str) else 'made'}, ggml {'stops' if made[name] is None else 'goes on'})")
    stopped = sum(data is None for data in made.values())
    check(f"{kind}, huge rows", not taken, "; ".join(taken) or f"{len(tensors) - len(finite)} refused, ggml stops at {stopped} of them")


# Back again

def gguf_values(path):
    """Decoded by gguf-py, and what gguf-py and ggml disagree on."""
    values, otherwise = {}, []
    for name, (kind, data) in read(path).items():
        if kind not in TYPES:
            values[name] = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
            continue
        theirs = GGML.decode(kind, data).reshape(*data.shape[:-1], -1)
        values[name] = theirs if kind in DECODED_BY_GGML_ALONE else gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
        if values[name].tobytes() != theirs.tobytes():
            otherwise.append(f"{name} ({kind})")
    return values, otherwise


HF_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"} | {
    f"blk.N.{ours}": f"model.layers.N.{theirs}" for ours, theirs in {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm"}.items()}


def hf_name(name):
    stem, layer = name.removesuffix(".weight"), re.search(r"\d+", name)
    named = HF_NAMES[re.sub(r"\d+", "N", stem)]
    return (named.replace("N", layer[0]) if layer else named) + ".weight"


def as_hf(values, head_dim):
    """By the names and in the order of rows of a Llama folder: GGUF turns pairs of neighbours, the folder halves of a head."""
    state = {}
    for name, value in values.items():
        if "attn_q.weight" in name or "attn_k.weight" in name:
            value = value.reshape(-1, head_dim // 2, 2, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)
        state[hf_name(name)] = np.ascontiguousarray(value)
    return state


def back(name, path, kinds):
    """Whether a file has tensors of these types, and is decoded as gguf-py decodes it."""
    values, otherwise = gguf_values(path)
    found = {kind for kind, _ in read(path).values()} & set(TYPES)
    there = WORK / "back.safetensors"
    atombank("convert", path, "-o", there, "--type", "f32", "--overwrite")
    expected, ours = as_hf(values, 64), load_file(there)
    other = [key for key in expected | ours if key not in ours or key not in expected or ours[key].tobytes() != expected[key].tobytes()]
    check(f"{name}: decoded", not other and not otherwise and found >= kinds,
          f"{len(ours)} tensors, of {', '.join(sorted(found))}" if not other and not otherwise
          else f"unlike gguf-py {other}, gguf-py unlike ggml {otherwise}")
    return values


def decoding():
    for kind in TYPES:
        path = WORK / f"all-{kind}.gguf"
        # The matrix has no entries for embeddings and output.
        atombank("convert", MODEL, "-o", path, "--type", "Q4_0", "--imatrix", IMATRIX, "--tensor-type", f"blk={kind}",
                 *([] if kind in ALWAYS_LED + USUALLY_LED else ["--token-embedding-type", kind, "--output-tensor-type", kind]))
        back(kind, path, {kind})
    for kind in ["Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "IQ2_M", "IQ3_XS", "IQ3_M", "MXFP4_MOE"]:
        path = WORK / f"{kind}.gguf"
        atombank("convert", MODEL, "-o", path, "--type", kind, "--imatrix", IMATRIX)
        back(kind, path, set())


# In llama.cpp

def as_q8_0(x):
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    largest = blocks.abs().amax(-1, keepdim=True)
    levels = torch.round(blocks * torch.where(largest > 0, 127 / largest, 0))
    return (levels * (largest / 127).half().float()).reshape(x.shape)


def as_q8_k(x):
    blocks = x.reshape(*x.shape[:-1], -1, 256)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = torch.where(largest != 0, -127 / largest, 0)
    levels = torch.round(blocks * scale).clamp(max=127)
    return (levels * torch.where(scale != 0, 1 / scale, 0)).reshape(x.shape)


def hf_model(values, types, rounded):
    """The model with these weights; its linear layers round what enters them as ggml does, if asked."""
    model = load_hf(MODEL)
    model.load_state_dict({name: torch.tensor(value) for name, value in as_hf(values, 64).items()})
    if rounded:
        modules = dict(model.named_modules())
        for name, (kind, _) in types.items():
            module = modules[hf_name(name).removesuffix(".weight")]
            if isinstance(module, torch.nn.Linear):
                round_as = as_q8_k if TYPES[kind].elems == 256 else as_q8_0
                module.register_forward_pre_hook(lambda module, args, round_as=round_as: (round_as(args[0]),))
    return model


# llama.cpp rounds activations to eight bits before it multiplies. Where transformers does the same, its
# log-probabilities are llama.cpp's but for the order of sums (found: 4e-6), unless a sum in another order turns one
# rounding: that alone moves them by 0.05 to 0.2, and 1e-6 of noise does it. So of short prompts most have to be within
# the first limit (found: 70 to 98 of 100), and all within the second, as has a long text without rounded activations
# (found: 0.23 to 0.43).
SAME_LIMIT, ROUNDING_LIMIT = 1e-4, 0.6
STEPS, SHORT_PROMPTS = 24, 60


def generation(kind):
    path = WORK / f"generate-{kind}.gguf"
    atombank("convert", MODEL, "-o", path, "--type", kind)
    values = back(f"{kind} to generate", path, set())
    types = read(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    plain, rounded = (hf_model(values, types, rounded) for rounded in [False, True])
    vocab = plain.config.vocab_size
    token, prompt = readable(tokenizer, vocab), prompt_of(tokenizer, vocab)
    server = llama_cpp(path, 256)

    gaps = []
    for i in range(SHORT_PROMPTS):
        pair = [prompt[i], prompt[(i + 12) % len(prompt)]]
        found = llama_cpp_logprobs(server, pair, token, 1, vocab)[0][0]
        gaps.append(gap(found, log_softmax(hf_logits(rounded, pair))[-1]))
    same = [difference for difference in gaps if difference <= SAME_LIMIT]
    check(f"{kind}: llama.cpp computes as transformers with rounded activations",
          2 * len(same) > len(gaps) and all(difference <= ROUNDING_LIMIT for difference in gaps),
          f"{len(same)} of {len(gaps)} prompts within {max(same, default=0):.1e}, the others within {max(gaps):.1e}")

    # All log-probabilities are reported behind a token that is a whole character: hence `token`, and the likeliest of
    # the list instead of what was sampled.
    found, ids = [], list(prompt)
    for _ in range(STEPS):
        found.append(llama_cpp_logprobs(server, ids, token, 1, vocab)[0][0])
        ids.append(int(found[-1].argmax()))
    expected = log_softmax(hf_logits(plain, ids[:-1])[len(prompt) - 1:])
    difference = gap(np.array(found), expected)
    # A token may be another where the two likeliest are as near as the log-probabilities are.
    lost = [float(row.max() - row[id]) for row, id in zip(expected, ids[len(prompt):])]
    check(f"{kind}: llama.cpp and transformers on decoded weights", difference <= ROUNDING_LIMIT and max(lost) <= 2 * difference,
          f"max |log-probability difference| {difference:.1e} over {STEPS} x {vocab}, {lost.count(0)} greedy tokens the same")
    answer = server.handle_completions({"prompt": prompt, "n_predict": STEPS, "temperature": 0, "ignore_eos": True, "cache_prompt": False})
    count = answer["usage"]["completion_tokens"]
    check(f"{kind}: llama.cpp generates", count == STEPS, f"{count} tokens")


WORK.mkdir(parents=True)
GGML = Ggml(fetched(WORK.parent / "ggml"))
inputs = {}
for kind, (_, elems, _) in TYPES.items():
    if elems not in inputs:
        inputs[elems] = Inputs(elems)
    against_ggml(kind, inputs[elems])
    huge_rows(kind)
decoding()
for kind in ["Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS"]:
    generation(kind)
finish("quantize")
