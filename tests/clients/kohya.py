"""Makes adapters of every kind with LyCORIS itself, merges their files with atombank, and compares the weights.

    python kohya.py ATOMBANK_BINARY WORK_DIR [CASES]

CASES is how many random configurations of a kind are tried beside those of the table. The weights to compare with are
those that LyCORIS multiplies with when the adapter is on, which are what was trained; its merge scales LoHa and LoKr
twice. They are bit-equal where the numbers that the file has are the ones that LyCORIS had: a learned scalar is
multiplied into a factor when it is saved, the scale of rs_lora goes through alpha in f32, and a whole update is saved as
a difference, so that elements may then differ by units in the last place. In f32 the merged model also has to give the
logits of base and adapter. Each check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import collections
import logging
import random
import re
import shutil
import sys
import warnings
import zlib

import torch
import transformers
from safetensors.torch import load_file, save_file

from common import WORK, atombank, check, finish, gap, hf_logits
from lycoris_network import in_use, network_of
from models import DTYPES, base_folder, guarded, load, refused, same_weights, tensors

NUMBER = int(sys.argv[3]) if len(sys.argv) > 3 else 8
LOGITS = 1e-3
# Units in the last place of a weight: of a small product that torch sums in another order; of factors or a scale that are
# rounded, which count by the size of the update, several times that of the weight here.
SUMMED, ROUNDED = 8, 16

# `targets` are ends of module paths, `settings` arguments of LycorisNetwork, `dtype` is that of the base, `saved` that of
# the adapter's file, `units` how far an element may be off.
Case = collections.namedtuple("Case", "base algo targets settings dtype saved units", defaults=["f32", "f32", 0])
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

CASES = {
    "LoRA": Case("llama", "lora", ATTENTION + ["down_proj"], dict(lora_dim=4, alpha=6)),
    "LoRA without alpha": Case("llama", "lora", ["q_proj"], dict(lora_dim=4, alpha=0)),
    "LoRA, biases beside": Case("qwen2", "lora", ATTENTION, dict(lora_dim=3, alpha=2.5), "bf16", "bf16"),
    "LoRA, rank-stabilized": Case("llama", "lora", ATTENTION, dict(lora_dim=6, alpha=4, rs_lora=True), units=ROUNDED),
    "LoRA, scalar": Case("llama", "lora", ATTENTION, dict(lora_dim=4, alpha=4, use_scalar=True), units=ROUNDED),
    "LoRA of a tied head": Case("qwen2", "lora", ["lm_head", "v_proj"], dict(lora_dim=4, alpha=8)),
    "LoRA, fused": Case("gpt-neox", "lora", ["query_key_value", "dense_4h_to_h"], dict(lora_dim=4, alpha=1)),
    "DoRA": Case("llama", "lora", ATTENTION + ["down_proj"], dict(lora_dim=4, alpha=6, weight_decompose=True)),
    "DoRA by input": Case("llama", "lora", ATTENTION + ["down_proj"], dict(lora_dim=4, alpha=6, weight_decompose=True, wd_on_out=False)),
    "DoRA by input, odd": Case("qwen2-odd", "lora", ATTENTION + ["down_proj"], dict(lora_dim=5, alpha=3, weight_decompose=True, wd_on_out=False), "bf16"),
    "LoHa": Case("llama", "loha", ATTENTION + ["down_proj"], dict(lora_dim=4, alpha=6)),
    "LoHa, DoRA": Case("llama", "loha", ATTENTION, dict(lora_dim=4, alpha=6, weight_decompose=True), "bf16", "f16"),
    "LoHa, rank-stabilized": Case("llama", "loha", ATTENTION, dict(lora_dim=6, alpha=4, rs_lora=True), units=ROUNDED),
    "LoHa, scalar": Case("qwen3", "loha", ATTENTION, dict(lora_dim=2, alpha=4, use_scalar=True), units=ROUNDED),
    "LoKr": Case("llama", "lokr", ATTENTION + ["down_proj"], dict(lora_dim=4, alpha=6), units=SUMMED),
    "LoKr of two whole factors": Case("llama", "lokr", ATTENTION + ["down_proj"], dict(lora_dim=4, alpha=6, full_matrix=True)),
    "LoKr of two whole factors by rank": Case("llama", "lokr", ATTENTION, dict(lora_dim=100000, alpha=1), "bf16"),
    "LoKr, both decomposed": Case("llama", "lokr", ATTENTION, dict(lora_dim=2, alpha=6, decompose_both=True, factor=8), units=SUMMED),
    "LoKr, unbalanced": Case("llama", "lokr", ATTENTION + ["down_proj"], dict(lora_dim=4, alpha=6, unbalanced_factorization=True), units=SUMMED),
    "LoKr, DoRA": Case("llama", "lokr", ATTENTION + ["down_proj"], dict(lora_dim=4, alpha=6, weight_decompose=True), units=ROUNDED),
    "LoKr, DoRA by input": Case("llama", "lokr", ATTENTION, dict(full_matrix=True, lora_dim=4, weight_decompose=True, wd_on_out=False)),
    "LoKr, rank-stabilized": Case("llama", "lokr", ATTENTION, dict(lora_dim=6, alpha=4, rs_lora=True), units=ROUNDED),
    "LoKr, scalar": Case("llama", "lokr", ATTENTION, dict(lora_dim=4, alpha=4, use_scalar=True), units=ROUNDED),
    "full": Case("qwen2", "full", ATTENTION + ["down_proj"], {}, units=1),
    "full, biases": Case("starcoder2", "full", ATTENTION + ["c_fc"], {}, "bf16", units=1),
    "norms": Case("starcoder2", "lora", ["q_proj", "layernorm", "norm"], dict(lora_dim=4, alpha=4, train_norm=True)),
    "norms of GPT-NeoX": Case("gpt-neox", "lora", ["layernorm", "layer_norm"], dict(train_norm=True), "bf16"),
    "norms and tied head of GPT-2": Case("gpt2", "lora", ["ln_.", "lm_head"], dict(lora_dim=4, alpha=2, train_norm=True)),
    "(IA)3 of outputs": Case("qwen2", "ia3", ATTENTION, {}),
    "(IA)3 of inputs": Case("llama", "ia3", ["q_proj", "down_proj"], dict(train_on_input=True), "bf16", "f16"),
    "GLoRA": Case("llama", "glora", ATTENTION + ["down_proj"], dict(lora_dim=4, alpha=6), units=SUMMED),
    "GLoRA, scalar": Case("qwen2", "glora", ATTENTION, dict(lora_dim=16, alpha=6, use_scalar=True), units=ROUNDED),
}


def randomise(network, saved):
    """Values that no initialisation leaves, and that the file's type has."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            noise = torch.randn(value.shape)
            part = name.split(".", 1)[1]
            if part == "dora_scale":
                value.mul_(1 + 0.1 * noise)
            elif part == "scalar":
                value.fill_(0.7)
            elif part.startswith(("hada_", "lokr_")):
                value.copy_(0.3 * noise)
            elif part in ("weight", "bias", "w_norm", "b_norm"):
                value.add_(0.1 * noise)                     # of (IA)3, and whole weights, which are in them by now
            else:
                value.copy_(0.1 * noise)
            if saved != "f32":
                value.copy_(value.to(DTYPES[saved]))


def make_adapter(name, case, file):
    """Saves an adapter; gives the model with it on, and the merged weights it ought to give."""
    torch.manual_seed(zlib.crc32(name.encode()))
    model = load(base_folder(case.base, case.dtype), "f32")
    paths = {module: path for path, module in model.named_modules()}
    network = network_of(model, case.algo, case.targets, case.settings).eval()
    randomise(network, case.saved)
    expected = tensors(base_folder(case.base, case.dtype))
    for lora in network.loras:
        if lora.not_supported:                              # RMS norms
            continue
        for part, value in in_use(lora).items():
            expected[f"{paths[lora.org_module[0]]}.{part}"] = value.to(DTYPES[case.dtype])
    network.save_weights(file, DTYPES[case.saved], None)
    return model, expected


def title(name, case):
    return f"{name} ({case.base} {case.dtype}, adapter {case.saved})"


def run_case(name, case):
    slug = re.sub(r"\W", "-", title(name, case))
    file, out, base = WORK / f"{slug}.safetensors", WORK / f"{slug}-merged", base_folder(case.base, case.dtype)
    model, expected = make_adapter(name, case, file)
    atombank("merge", base, file, "-o", out, "--quiet")
    passed, line = same_weights(case.units, base, tensors(out), expected)
    check(f"{title(name, case)}: weights", passed, line)
    if case.dtype == "f32":
        ids = [3 + i * 37 % 300 for i in range(48)]
        difference = gap(hf_logits(load(out, "f32"), ids), hf_logits(model, ids))
        check(f"{title(name, case)}: logits", difference <= LOGITS, f"max |difference from base and adapter| {difference:.1e}")
    if passed:
        file.unlink()
        shutil.rmtree(out)


# Random configurations

LEAVES = {
    "llama": ATTENTION + ["gate_proj", "up_proj", "down_proj", "lm_head"], "qwen3": ATTENTION + ["gate_proj", "down_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj"], "gpt-neox": ["query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"],
    "stablelm": ATTENTION + ["up_proj"], "starcoder2": ATTENTION + ["c_fc", "c_proj"], "qwen2-odd": ATTENTION + ["up_proj", "down_proj"],
    "qwen2": ATTENTION + ["down_proj"], "gemma": ATTENTION + ["gate_proj"], "olmo2": ATTENTION + ["down_proj"],
}
NORMS = {"gpt-neox": ["layernorm", "layer_norm"], "stablelm": ["layernorm", "norm"], "starcoder2": ["layernorm", "norm"]}


def random_settings(rng, algo):
    """Arguments of a kind, the file's type, and how far off elements may be in f32."""
    settings, saved = {}, rng.choice(["f32", "f32", "f16", "bf16"])
    if algo == "full":
        return settings, "f32", 1
    if algo == "ia3":
        return dict(train_on_input=rng.random() < 0.5), saved, 0
    settings |= dict(lora_dim=rng.randint(1, 24), alpha=rng.choice([rng.randint(1, 32), 1, 2.5]))
    units = SUMMED if algo in ("lokr", "glora") else 0
    if algo == "lokr":
        settings |= dict(decompose_both=rng.random() < 0.5, factor=rng.choice([-1, -1, 2, 4, 8, 16]), unbalanced_factorization=rng.random() < 0.3)
        settings["full_matrix"] = rng.random() < 0.2
    if algo != "glora" and rng.random() < 0.4:
        settings |= dict(weight_decompose=True, wd_on_out=rng.random() < 0.6)
        units = ROUNDED if algo == "lokr" else units
    if rng.random() < 0.2:
        settings["use_scalar"], saved, units = True, "f32", ROUNDED
    elif algo in ("lora", "loha") and rng.random() < 0.25:
        settings["rs_lora"], saved, units = True, "f32", ROUNDED
    return settings, saved, units


def random_cases(algo, number):
    rng = random.Random(f"{algo} of kohya.py")
    for i in range(number):
        base = rng.choice(list(LEAVES))
        targets = rng.sample(LEAVES[base], rng.randint(1, len(LEAVES[base])))
        settings, saved, units = random_settings(rng, algo)
        if base in NORMS and rng.random() < 0.5:
            targets, settings["train_norm"] = targets + NORMS[base], True
        if rng.random() < 0.3:
            targets = [rf"layers\.1\..*{target}" for target in targets if target != "lm_head"] or targets
        dtype = rng.choice(["f32", "f32", "f16", "bf16"])
        yield f"{algo} random {i}", Case(base, algo, targets, settings, dtype, saved, units if dtype == "f32" else min(units, 1))


# What can't be merged

def what_is_refused():
    llama, file = base_folder("llama", "f32"), WORK / "good.safetensors"

    def made(name, base="llama", algo="lora", targets=("q_proj",), **settings):
        make_adapter(name, Case(base, algo, list(targets), dict(lora_dim=4, alpha=4) | settings), file)
        return load_file(file)

    def refuse(name, values):
        save_file(values, file)
        refused(name, llama, file)

    lora, loha, lokr, ia3 = made("LoRA"), made("LoHa", algo="loha"), made("LoKr", algo="lokr"), made("(IA)3", algo="ia3")
    glora, dora = made("GLoRA", algo="glora"), made("DoRA", weight_decompose=True)
    query = "lycoris_model_layers_0_self_attn_q_proj"
    for values, parts in [(lora, ["lora_up.weight", "lora_down.weight"]), (loha, ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]),
                          (lokr, ["lokr_w1", "lokr_w2_a", "lokr_w2_b"]), (ia3, ["on_input", "weight"]), (glora, ["a1.weight", "a2.weight", "b1.weight", "b2.weight"])]:
        for part in parts:
            refuse(f"{part} missing", {key: value for key, value in values.items() if key != f"{query}.{part}"})
            values_of = values[f"{query}.{part}"]
            if values_of.dim() == 2:
                refuse(f"{part} of another shape", {**values, f"{query}.{part}": torch.ones(values_of.shape[0] + 1, values_of.shape[1] + 1)})
                refuse(f"{part} of a convolution", {**values, f"{query}.{part}": values_of[:, :, None, None].clone()})
            if values_of.is_floating_point():
                refuse(f"NaN in {part}", {**values, f"{query}.{part}": torch.full_like(values_of, float("nan"))})
    for part, value in [("alpha", torch.ones(2)), ("alpha", torch.tensor(float("nan"))), ("alpha", torch.tensor(float("inf"))), ("lora_mid.weight", torch.ones(4, 4)),
                        ("scalar", torch.ones(())), ("something", torch.ones(4)), ("diff", torch.ones(256, 256)), ("dora_scale", torch.ones(256)),
                        ("diff_b", torch.ones(256)), ("w_norm", torch.ones(256))]:
        refuse(f"LoRA and {part} {tuple(value.shape)}", {**lora, f"{query}.{part}": value})
    refuse("DoRA of another shape", {**dora, f"{query}.dora_scale": torch.ones(255, 1)})
    refuse("NaN in DoRA", {**dora, f"{query}.dora_scale": torch.full((256, 1), float("nan"))})
    refuse("input and output", {**ia3, f"{query}.on_input": torch.tensor(2)})
    refuse("two updates of one module", {**lora, **{key.replace("lycoris_model_", "lora_te_"): value.clone() for key, value in lora.items()}})
    refuse("another base's shapes", made("shapes", "qwen2-odd"))
    refuse("another base's layers", made("layers", "medium"))
    refuse("another base's modules", made("modules", "gpt-neox", targets=("query_key_value",)))
    refuse("a scale that is not in the file", made("rs_lora", algo="lokr", full_matrix=True, rs_lora=True, lora_dim=5))
    refuse("Diag-OFT", made("Diag-OFT", algo="diag-oft"))
    refuse("BOFT", made("BOFT", algo="boft"))
    refuse("T-LoRA", made("T-LoRA", algo="tlora"))
    refuse("nothing", {"lycoris_model_layers_0_self_attn_q_proj.alpha": torch.ones(())})


warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
WORK.mkdir(parents=True)
for name, case in CASES.items():
    guarded(title(name, case), lambda: run_case(name, case))
for algo in ["lora", "loha", "lokr", "full", "ia3", "glora"]:
    for name, case in random_cases(algo, NUMBER):
        guarded(title(name, case), lambda: run_case(name, case))
guarded("refused", what_is_refused)
finish("kohya")
