"""Runs configurations with mergekit itself and with `atombank merge --config`.

    python mergekit_yaml.py ATOMBANK_BINARY WORK_DIR

Models are tiny and random, some in bfloat16 and float16, one with tied embeddings. Every configuration has to give the same
tensors: the same bits where the method is arithmetic, 1e-6 of each tensor's largest value otherwise or, in 16 bits, for all but
a few values that are a unit in the last place apart. Where values are pruned by magnitude, mergekit keeps any of several equal
ones, which are many in 16 bits: up to two in a hundred may differ. karcher is computed in float32 whatever `dtype` says. Results have to load in transformers with all their tensors and compute finite logits. Each check prints a line;
the last line counts them. Exit code 1 where one failed.
"""
import random
import shutil
import subprocess

from common import BINARY, FIXTURES, WORK, atombank, check, finish

import peft
import torch
import transformers
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file

# Methods whose results have the bits of mergekit. The others sum over whole tensors, in an order that depends on the processor.
EXACT = ["linear", "task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties", "passthrough", "nearswap", "ram"]
# Methods that choose values by their magnitude.
PRUNING = ["ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear"]
# Methods that are computed in float32 and rounded once.
WIDE = ["karcher"]
LIMIT = 1e-6
# A unit in the last place of the largest value.
UNIT = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
HIDDEN, LAYERS, VOCAB = 32, 4, 320
KINDS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM, {"head_dim": 16}),
}


def make(name, kind, seed, base=None, dtype=torch.float32, layers=LAYERS, **fields):
    """A random model, or `base` with small changes, which are zero for some values."""
    config_class, model_class, own = KINDS[kind]
    config = config_class(hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=2,
                          num_key_value_heads=1, vocab_size=VOCAB, max_position_embeddings=64, **{**own, **fields})
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        if base is not None:
            own = dict(model.named_parameters())
            for key, value in transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).named_parameters():
                if key in own:
                    own[key].copy_(value + 0.05 * own[key] * (torch.rand_like(value) < 0.8))
    folder = WORK / name
    model.to(dtype).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(FIXTURES / "convert" / "llama" / "model" / file, folder / file)
    return folder


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def by_mergekit(text, out, seed):
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions(random_seed=seed, quiet=True, lora_merge_cache=str(WORK / "cache"))
    run_merge(config, str(out), options, config_source=text)


def by_atombank(file, out, seed, *options):
    return subprocess.run([BINARY, "merge", "--config", str(file), "-o", str(out), "--seed", str(seed), "--quiet", *options],
                          capture_output=True, text=True)


def compared(found, expected):
    """The largest difference relative to the largest value of its tensor, the worst tensor, and the share of other bits."""
    if set(found) != set(expected):
        return float("inf"), f"other tensors: {sorted(set(found) ^ set(expected))[:4]}", 1.0
    worst, where, different, total = 0.0, "", 0, 0
    for name, tensor in expected.items():
        if found[name].dtype != tensor.dtype or found[name].shape != tensor.shape:
            return float("inf"), f"{name}: {found[name].dtype} {tuple(found[name].shape)}", 1.0
        width = tensor.element_size()
        bits = (found[name].reshape(-1).view(torch.uint8) != tensor.reshape(-1).view(torch.uint8)).reshape(-1, width).any(1)
        different, total = different + int(bits.sum()), total + tensor.numel()
        a, b = found[name].float(), tensor.float()
        gap = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        if not gap <= worst:
            worst, where = gap, name
    return worst, where, different / total


def run(name, config, seed=7, coarse=False, near=False):
    """Merges with both programs and compares."""
    text = config if isinstance(config, str) else yaml.dump(config, sort_keys=False)
    file = WORK / f"{name}.yml"
    file.write_text(text)
    method = yaml.safe_load(text)["merge_method"]
    theirs, ours = WORK / f"{name}-mergekit", WORK / f"{name}-atombank"
    by_mergekit(text, theirs, seed)
    made = by_atombank(file, ours, seed)
    if made.returncode:
        return check(name, False, made.stderr.strip())
    expected = tensors(theirs)
    gap, where, share = compared(tensors(ours), expected)
    dtype = next(iter(expected.values())).dtype
    config = yaml.safe_load(text)
    # The type of the arithmetic: many magnitudes are the same where that, or the models, have 16 bits.
    narrow = dtype in UNIT or config.get("dtype") in ("bfloat16", "float16") or coarse
    if method in WIDE and config.get("dtype") != "float32" and dtype in UNIT:
        passed = gap <= 0.05
    elif method in PRUNING and narrow:
        # The order of equal magnitudes decides about most of della's draws.
        passed = share < (0.3 if method.startswith("della") else 0.02)
    elif method in EXACT and not near:
        passed = share == 0
    else:
        passed = gap <= LIMIT or dtype in UNIT and gap <= UNIT[dtype] and share < 0.02
    if passed:
        model = transformers.AutoModelForCausalLM.from_pretrained(ours, dtype=torch.float32)
        logits = model(torch.tensor([[1, 5, 9, 20]])).logits
        passed = bool(torch.isfinite(logits).all())
        mine = {k: v for k, v in model.state_dict().items()}
        stale = [k for k, v in tensors(ours).items() if k in mine and not torch.equal(mine[k], v.float())]
        passed, where = passed and not stale, f"not loaded: {stale[:3]}" if stale else where
    passed = passed and (ours / "mergekit_config.yml").read_text() == text and "mergekit" in (ours / "README.md").read_text()
    check(name, passed, f"{len(expected)} tensors, furthest {gap:.1e} ({where}), {share:.1e} with other bits")
    shutil.rmtree(theirs), shutil.rmtree(ours)


def refused(name, config, expected):
    file = WORK / f"{name}.yml"
    file.write_text(yaml.dump(config, sort_keys=False))
    out = WORK / f"{name}-out"
    made = by_atombank(file, out, 0)
    lines = [line for line in made.stderr.splitlines() if not line.startswith("note: ")]
    check(name, made.returncode == 1 and len(lines) == 1 and expected in lines[0] and not out.exists(), made.stderr.strip())


WORK.mkdir(parents=True)
torch.set_num_threads(1)
base = make("base", "llama", 0)
a, b, c = (make(n, "llama", i + 1, base) for i, n in enumerate("abc"))
deep = make("deep", "llama", 9, layers=6)
bf = make("bf", "llama", 20, dtype=torch.bfloat16)
bf_a, bf_b = (make(f"bf-{n}", "llama", 21 + i, bf, torch.bfloat16) for i, n in enumerate("ab"))
hf_a, hf_b = (make(f"hf-{n}", "llama", 31 + i, bf, torch.float16) for i, n in enumerate("ab"))
tied = make("tied", "llama", 41, base, tie_word_embeddings=True)
q, qa, qb = make("q", "qwen2", 50), None, None
qa, qb = (make(f"q{n}", "qwen2", 51 + i, q) for i, n in enumerate("ab"))
m, ma = make("m", "mistral", 60), None
ma = make("ma", "mistral", 61, m)
g, ga = make("g", "gemma2", 70), None
ga = make("ga", "gemma2", 71, g)
base, a, b, c, deep, bf, bf_a, bf_b, hf_a, hf_b, tied, q, qa, qb, m, ma, g, ga = map(
    str, (base, a, b, c, deep, bf, bf_a, bf_b, hf_a, hf_b, tied, q, qa, qb, m, ma, g, ga))


def weighted(*pairs):
    return [{"model": model, "parameters": {"weight": weight}} for model, weight in pairs]


# The examples of mergekit's repository, with other models.
run("example-bio-merge", f"""models:
  - model: {hf_a}
    parameters:
      density: 0.5
      weight: 0.5
  - model: {hf_b}
    parameters:
      density: 0.5
      weight: 0.5
merge_method: ties
base_model: {bf}
parameters:
  normalize: false
  int8_mask: true
dtype: float16
""")
run("example-gradient-slerp", f"""slices:
  - sources:
      - model: {a}
        layer_range: [0, {LAYERS}]
      - model: {b}
        layer_range: [0, {LAYERS}]
merge_method: slerp
base_model: {a}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float16
""")
run("example-linear", {"models": weighted((a, 1.0), (b, 0.3), (c, 0.5)), "merge_method": "linear", "dtype": "float16"})
run("example-ties", f"""models:
  - model: {a}
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: {b}
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: {c}
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: {base}
parameters:
  normalize: true
  int8_mask: true
dtype: float16
""")
run("example-orcamini-platy-44layer", f"""slices:
  - sources:
    - model: {a}
      layer_range: [0, 3]
  - sources:
    - model: {b}
      layer_range: [2, 4]
merge_method: passthrough
dtype: float16
""")
run("example-arcee-fusion", f"""models:
  - model: {a}
  - model: {b}
merge_method: arcee_fusion
base_model: {a}
dtype: bfloat16
""")

# Types: of the models, of the arithmetic and of the result.
two = [("task_arithmetic", {}), ("ties", {"density": 0.6}), ("dare_linear", {"density": 0.6}), ("dare_ties", {"density": 0.4}),
       ("della", {"density": 0.5}), ("della_linear", {"density": 0.5}), ("breadcrumbs", {"density": 0.7, "gamma": 0.1}),
       ("breadcrumbs_ties", {"density": 0.7, "gamma": 0.1}), ("sce", {"select_topk": 0.5}), ("model_stock", {}), ("karcher", {}),
       ("linear", {}), ("multislerp", {}), ("ram", {}), ("ramplus_tl", {"r": 0.2})]
for method, parameters in two:
    models = weighted((a, 0.8), (b, -0.3), (c, 0.6))
    config = {"models": models, "merge_method": method, "parameters": parameters, "dtype": "float32"}
    if method not in ("linear", "karcher", "multislerp"):
        config["base_model"] = base
    run(f"{method}-f32", config)
    config = {**config, "models": weighted((bf_a, 0.8), (bf_b, 0.4)), "dtype": "float32", "out_dtype": "bfloat16"}
    if "base_model" in config:
        config["base_model"] = bf
    run(f"{method}-f32-to-bf16", config, coarse=True)
    for dtype in ("bfloat16", "float16"):
        run(f"{method}-{dtype}", {**config, "dtype": dtype, "out_dtype": None})
    run(f"{method}-own", {k: v for k, v in config.items() if k not in ("dtype", "out_dtype")})
pair = [{"model": bf}, {"model": bf_a}]
for method, models, parameters in (
        ("slerp", pair, {"t": 0.3}), ("nearswap", pair, {"t": 0.01}), ("arcee_fusion", pair, {}),
        ("nuslerp", weighted((bf_a, 0.3), (bf_b, 0.6)), {}),
        ("nuslerp", weighted((bf_a, 0.3), (bf_b, 0.6)), {"nuslerp_flatten": False}),
        ("nuslerp", weighted((bf_a, 0.3), (bf_b, 0.6)), {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("model_stock", weighted((bf_a, 0.3), (bf_b, 0.6)), {"filter_wise": True})):
    for dtype in ("float32", "bfloat16", "float16"):
        config = {"models": models, "merge_method": method, "parameters": parameters, "dtype": dtype}
        rows = "-columns" if "nuslerp_row_wise" in parameters else "-rows" if parameters.keys() & {"nuslerp_flatten", "filter_wise"} else ""
        run(f"{method}{rows}-{dtype}", config if method == "nuslerp" else {**config, "base_model": bf}, coarse=True)
run("nuslerp-base", {"models": weighted((bf_a, 0.3), (bf_b, 0.6)), "merge_method": "nuslerp", "base_model": bf})
run("multislerp-base", {"models": weighted((a, 0.3), (b, 0.6), (c, 1)), "merge_method": "multislerp", "base_model": base})
run("passthrough-scale", {"models": [{"model": bf_a, "parameters": {"scale": [{"filter": "o_proj", "value": [0.5, 2]},
                                                                             {"filter": "down_proj", "value": 0}]}}],
                          "merge_method": "passthrough"})
run("mixed-types", {"models": weighted((bf_a, 0.8), (hf_b, 0.4)), "merge_method": "linear"})

# Other classes, and heads that are tied.
run("qwen2", {"models": weighted((qa, 0.5), (qb, 0.7)), "merge_method": "task_arithmetic", "base_model": q, "dtype": "bfloat16"})
run("mistral", {"models": weighted((ma, 0.5), (m, 0.7)), "merge_method": "linear", "dtype": "float32"})
run("gemma2", {"models": weighted((ga, 0.5)), "merge_method": "task_arithmetic", "base_model": g, "dtype": "float32"})
run("tied-into-untied", {"models": weighted((tied, 0.5), (a, 0.7)), "merge_method": "task_arithmetic", "base_model": base})
run("untied-into-tied", {"models": weighted((base, 0.5), (a, 0.7)), "merge_method": "linear", "base_model": tied,
                         "parameters": {"weight": 0.5}})

# Levels of parameters, filters and gradients.
run("levels", {"slices": [
    {"sources": [{"model": base, "layer_range": [0, 2]},
                 {"model": a, "layer_range": [0, 2], "parameters": {"weight": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.3}]}},
                 {"model": b, "layer_range": [0, 2]}], "parameters": {"weight": 0.7}},
    {"sources": [{"model": base, "layer_range": [2, 4]}, {"model": a, "layer_range": [2, 4], "parameters": {"weight": [1, 0]}},
                 {"model": b, "layer_range": [2, 4]}], "parameters": {"lambda": [0.5, 1.5], "normalize": [True, False]}}],
    "merge_method": "task_arithmetic", "base_model": base, "parameters": {"weight": "2e-1", "lambda": 0.9}})
run("other-layers", {"slices": [
    {"sources": [{"model": a, "layer_range": [0, 3], "parameters": {"weight": 0.4}}, {"model": deep, "layer_range": [3, 6]}]},
    {"sources": [{"model": deep, "layer_range": [1, 3]}, {"model": b, "layer_range": [2, 4]}]}],
    "merge_method": "linear", "parameters": {"weight": 1}})
run("dare-in-slices", {"slices": [
    {"sources": [{"model": base, "layer_range": [0, 1]}, {"model": a, "layer_range": [0, 1]}]},
    {"sources": [{"model": base, "layer_range": [2, 4]}, {"model": b, "layer_range": [1, 3]}]}],
    "merge_method": "dare_linear", "base_model": base, "parameters": {"weight": 1, "density": [0.2, 0.9]}})
run("base-in-slice", {"slices": [
    {"base_model": a, "sources": [{"model": base, "layer_range": [0, 2]}, {"model": a, "layer_range": [0, 2]}]},
    {"sources": [{"model": base, "layer_range": [2, 4]}, {"model": b, "layer_range": [2, 4]}]}],
    "merge_method": "slerp", "base_model": base, "parameters": {"t": [0.1, 0.8]}})
run("modules", {"modules": {"default": {"models": weighted((a, 0.5), (b, 0.7)), "parameters": {"normalize": False}}},
                "merge_method": "linear", "parameters": {"normalize": True}})

# A model with an adapter.
torch.manual_seed(5)
adapted = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(bf_a), peft.LoraConfig(
    r=4, target_modules=["q_proj", "down_proj", "lm_head"]))
for key, parameter in adapted.named_parameters():
    if "lora_" in key:
        torch.nn.init.normal_(parameter, std=0.1)
adapted.save_pretrained(WORK / "lora")
run("model+lora", {"models": weighted((f"{bf_a}+{WORK / 'lora'}", 0.5), (bf_b, 0.5)), "merge_method": "linear"})
run("tokenizer", {"models": weighted((a, 0.5), (b, 0.5)), "merge_method": "linear", "base_model": base, "parameters": {"weight": 1},
                  "tokenizer_source": "base"})

# A model with more tokens.
more = transformers.AutoModelForCausalLM.from_pretrained(b)
own = transformers.AutoTokenizer.from_pretrained(b)
own.add_tokens(["<|one|>", "<|two|>", "three"])
torch.manual_seed(6)
more.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
more.save_pretrained(WORK / "more"), own.save_pretrained(WORK / "more")
more = str(WORK / "more")
both = {"models": weighted((a, 0.5), (more, 0.75)), "merge_method": "task_arithmetic", "base_model": base}
run("tokenizer-of-base", {**both, "tokenizer_source": "base"})
run("tokenizer-of-a-model", {**both, "tokenizer_source": more})
run("tokenizer-with-tokens", {**both, "tokenizer": {"source": more, "pad_to_multiple_of": 64, "tokens": {
    "<|one|>": {"source": {"kind": "zero"}, "force": True},
    "three": {"source": {"kind": "model_token", "model": a, "token_id": 7}},
    "<|new|>": {"source": {"kind": "model_token", "model": base, "token_id": 9}}}}}, near=True)
refused("other-vocabulary", both, "tokenizer_source base or union")

# What the command line writes beside a merge is a configuration for mergekit, too.
for name, options in (("ties", ["--density", "0.4,0.7", "--lambda", "1.2"]), ("dare_linear", ["--density", "0.5", "--seed", "3"]),
                      ("linear", ["--weights", "mlp.*=0.3,0.1", "--type", "bf16"])):
    out = WORK / f"{name}-command"
    atombank("merge", base, f"{a}=0.5", f"{b}=-0.2", "-o", out, "--method", name, *options)
    run(f"{name}-by-options", (out / "mergekit_config.yml").read_text(), seed=3)

# Random configurations.
random.seed(11)
FILTERS = ["self_attn", "mlp", "q_proj", "layernorm", "layers.2.", "lm_head", "*"]


def value(low, high):
    number = lambda: round(random.uniform(low, high), 3)
    one = lambda: number() if random.random() < 0.5 else [number() for _ in range(random.randint(2, 5))]
    if random.random() < 0.4:
        return one()
    return [{"filter": random.choice(FILTERS), "value": one()} for _ in range(random.randint(1, 3))] + [{"value": one()}]


for i in range(12):
    method = random.choice(["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "slerp"])
    models = random.sample([a, b, c], random.randint(1, 3)) if method != "slerp" else [random.choice([a, b, c])]
    config = {"merge_method": method, "parameters": {}, "dtype": random.choice(["float32", "bfloat16", "float16"])}
    if method == "slerp":
        config["parameters"]["t"] = value(0, 1)
    if method != "linear":
        config["base_model"] = base
    if method in ("ties", "dare_linear", "dare_ties", "breadcrumbs"):
        config["parameters"]["density"] = value(0.2, 1)
    if method in ("task_arithmetic", "ties") and random.random() < 0.5:
        config["parameters"]["lambda"] = value(0.5, 1.5)
    own = lambda: {} if method == "slerp" else {"parameters": {"weight": value(0.1, 1)}}
    if random.random() < 0.5:
        config["models"] = [{"model": model, **own()} for model in models]
    else:
        cut = random.randint(1, LAYERS - 1)
        inputs = models + ([base] if method != "linear" else [])
        config["slices"] = [{"sources": [{"model": model, "layer_range": span, **(own() if model != base else {})}
                                         for model in inputs]} for span in ([0, cut], [cut - 1, LAYERS])]
    run(f"random-{i}-{method}", config, seed=i)

# What is refused.
refused("unknown-key", {"models": [{"model": a, "paramters": {}}], "merge_method": "linear"}, "did you mean parameters?")
refused("past-the-model", {"slices": [{"sources": [{"model": a, "layer_range": [0, 9]}]}], "merge_method": "linear",
                           "parameters": {"weight": 1}}, f"which has {LAYERS}")
refused("no-weight", {"models": [{"model": a}], "merge_method": "linear"}, "parameters.weight: expected a value for linear")
refused("no-base", {"models": weighted((a, 1)), "merge_method": "ties"}, "base_model: expected a model for ties")
refused("twice", {"models": weighted((a, 1), (a, 1)), "merge_method": "linear"}, "expected each model once")
refused("other-class", {"models": weighted((a, 1), (m, 1)), "merge_method": "linear"}, "architectures: expected LlamaForCausalLM")
finish("mergekit")
