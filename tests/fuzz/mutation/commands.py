"""What is run: commands with their inputs, each of which may be mutated, and their numbers."""
from mutation.inputs import SMALL
from mutation.values import INTS

TYPES = ["f32", "f16", "bf16", "q8_0", "auto", "source", "Q4_K_M", "Q2_K", "Q6_K", "IQ4_NL", "IQ2_XS", "Q4_0", "TQ1_0", "Q5_1", "COPY", "MXFP4_MOE"]
SHARES = ["0", "1", "0.5", "-0.1", "1.5", "nan", "inf", "1e-320", "1e308", "", "x", "0.5,0.7", "0.5,", ",", "0.1,0.2,0.3,0.4", "1e999", "1e-9"]
FACTORS = [*SHARES, "2", "-1", "1e30", "-0", "3.5e38"]
COUNTS = [*(str(i) for i in INTS if i < 8 or i > 2**62), "100", "1000000", "100000000", "2147483647", "4294967296", "1.5", "x", "", "nan", "-2147483648"]
SIZES = ["0", "1", "4", "1KB", "100KB", "1e3", "-1", "9999999999TB", "1.5MB", "x", "", "18446744073709551615", "16EiB", "5GB", "KB", "1 KB"]
PATTERNS = ["blk=q8_0", "(=q8_0", "attn_v=q9", "attn_v", "=", "a{99999999}=f16", ".*=q4_k", "(a*)*b=q8_0", "attn_q=q4_0", "x" * 5000 + "=f16", "ffn=iq1_s", "=f32"]
OVERRIDES = ["general.name=x", "general.name=str:" + "y" * 200, "llama.context_length=u32:-1", "a=f32:nan", "a.b=arr:1", "=", "x", "general.alignment=u32:7",
             "general.architecture=zz", "tokenizer.ggml.tokens=x", "general.file_type=int:9999999999", "split.count=5", "a=bool:2", "\x1b[1m=x"]
MODEL_METHODS = ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "slerp",
                 "nuslerp", "model_stock", "karcher", "multislerp", "nearswap", "arcee_fusion", "ram", "ramplus_tl", "passthrough"]
LORA_METHODS = ["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"]

WRITE = {"--type": TYPES + ["q9", "", "F32", "0", "\x1b[1m"], "--shard-size": SIZES, "--split-max-size": SIZES, "--split-max-tensors": COUNTS, "--max-memory": SIZES,
         "--to": ["hf", "gguf", "safetensors", "pytorch", "lora", "x"], "--threads": ["0", "-1", "1", "x", "18446744073709551616"],
         "--kernel": ["scalar", "avx2", "avx512", "x", ""], "--sync": [None], "--dry-run": [None]}
PLAN = {"--prune-layers": ["0", "1", "0,1", "99", "-1", "", "0,0", "4294967296", "x", ","], "--tensor-type": PATTERNS, "--output-tensor-type": TYPES + ["x"],
        "--token-embedding-type": TYPES + ["x"], "--pure": [None], "--leave-output-tensor": [None], "--allow-requantize": [None], "--override-key": OVERRIDES,
        "--include-weights": ["attn", "", "x"], "--exclude-weights": ["attn", ""]}
NAMES = {"--pre": ["llama-bpe", "default", "x", "", "\x1b[1m", "q" * 5000], "--model-name": ["", "x" * 5000, "a/b", "\x1b[31m", "Some-7B-v2"], "--vocab-only": [None]}
COMBINE = {"--density": SHARES, "--weights": ["q_proj=0.3", "self_attn.*=0.3,0.7", "(=1", "=1", "x", "mlp=nan", "a{9999999}=1", ".*=1e308", "q_proj=", "*=0.5"], "--seed": COUNTS,
           "--rank": COUNTS, "--lambda": FACTORS, "--epsilon": FACTORS, "--gamma": SHARES, "--normalize": ["true", "false", "x"],
           "--rescale": ["true", "false"], "--t": FACTORS, "--select-topk": SHARES, "--max-iter": ["0", "-1", "1", "5", "18446744073709551616", "x"],
           "--tol": FACTORS, "--filter-wise": [None], "--nuslerp-flatten": ["true", "false"], "--nuslerp-row-wise": [None], "--nuslerp-updates": [None],
           "--multislerp-updates": [None], "--r": FACTORS, "--alpha": FACTORS, "--scale": FACTORS, "--majority-sign": ["total", "frequency", "x"], "--keep-base": [None]}


GROUPS = ("hf-gguf hf-gguf-q hf-hf hf-bin gguf-hf gguf-gguf gguf-st vocab split-hf pytorch-folder metadata generic pytorch safetensors safetensors-bin lora-gguf gguf-lora "
          "hf gguf bank imatrix-gguf imatrix-dat models types logits lora encoder to-lora of-gguf base build").split()


class Command:
    """`inputs`: names in the case's folder and where they are from; `args` name them as in/NAME."""

    def __init__(self, name, args, inputs, output=None, options=None, weight=1.0, mutable=None):
        self.name, self.args, self.inputs, self.output, self.options, self.weight = name, args, inputs, output, options or {}, weight
        self.mutable = mutable or list(inputs)
        # A file of an input's folder that has nothing to show.
        self.skip = None
        verb, rest = (name.split() + [""])[:2]
        # A row of the summary.
        self.group = name if verb == "bank" else f"{verb} {rest}" if rest in GROUPS else verb if verb != "inspect" else "inspect adapters"


def all_commands():
    out = []

    def add(name, args, inputs, output=None, options=None, weight=1.0, mutable=None):
        args = args.split() if isinstance(args, str) else args
        if output:
            args = [*args, "-o", f"out/{output}"]
        out.append(Command(name, args, inputs, output, options, weight, mutable))

    write = {**WRITE, **PLAN}
    convert = {**write, **NAMES}
    for name in SMALL:
        model = {"m": f"convert/{name}/model"}
        add(f"convert hf-gguf {name}", "convert in/m", model, "m.gguf", convert, 2)
        add(f"convert hf-gguf-q {name}", "convert in/m --type q8_0", model, "m.gguf", convert)
        add(f"convert hf-hf {name}", "convert in/m", model, "m", WRITE, 0.5)
        add(f"convert hf-bin {name}", "convert in/m --type bf16", model, "m.bin", WRITE, 0.2)
        add(f"inspect hf {name}", "inspect in/m --json --tensors", model, None, None, 0.4)
        gguf = {"m.gguf": f"made/gguf/{name}.gguf"}
        add(f"convert gguf-hf {name}", "convert in/m.gguf", gguf, "m", WRITE, 2)
        add(f"convert gguf-gguf {name}", "convert in/m.gguf", gguf, "m.gguf", write, 0.5)
        add(f"convert gguf-st {name}", "convert in/m.gguf", gguf, "m.safetensors", WRITE, 0.3)
        add(f"quantize {name}", "quantize in/m.gguf --type Q4_0", gguf, "q.gguf", {**write, "--json": [None]}, 0.6)
        add(f"compare {name}", "compare in/a in/m.gguf --json", {"a": f"convert/{name}/model", **gguf}, None, None, 0.4)
        add(f"inspect gguf {name}", "inspect in/m.gguf --tensors", gguf, None, None, 0.4)
    for name in ("bert", "bert-files", "code-llama", "gemma", "gemma2", "gemma3", "gemma3-json", "gpt2-files", "granite", "llama-hf", "llama-spm", "llama3", "phi3",
                 "phi4", "qwen2-files", "roberta", "xlm-roberta", "xlm-roberta-json"):
        add(f"convert vocab {name}", "convert in/m --vocab-only", {"m": f"vocab/{name}/model"}, "v.gguf", NAMES, 2)
        out[-1].skip = "model.safetensors"

    for kind in ("f32", "Q4_K_M", "IQ4_XS"):
        gguf = {"m.gguf": f"made/gguf/llama-{kind}.gguf"}
        add(f"quantize llama-{kind}", "quantize in/m.gguf --type Q4_K_M --allow-requantize", gguf, "q.gguf", write, 0.2)
        add(f"convert gguf-hf llama-{kind}", "convert in/m.gguf --type f16", gguf, "m", WRITE, 0.4)
    add("convert gguf-hf vocab", "convert in/m.gguf", {"m.gguf": "made/gguf/vocab.gguf"}, "m", WRITE)
    add("convert gguf-gguf vocab", "convert in/m.gguf", {"m.gguf": "made/gguf/vocab.gguf"}, "m.gguf", WRITE, 0.5)
    add("convert split-hf", "convert in/s/m-00001-of-00002.gguf", {"s": "made/split"}, "m", WRITE, 2)
    add("convert pytorch-folder", "convert in/m", {"m": "made/pytorch/starcoder2"}, "m.gguf", convert, 2)
    add("convert metadata", "convert in/m --metadata in/x.json", {"m": "convert/starcoder2/model", "x.json": "made/metadata.json"}, "m.gguf", convert, 1, ["x.json"])
    add("quantize types", "quantize in/m.gguf --type Q4_0 --tensor-type-file in/t.txt", {"m.gguf": "made/gguf/starcoder2.gguf", "t.txt": "made/types.txt"}, "q.gguf", write, 0.5, ["t.txt"])
    for name in ("plain-little", "plain-big", "blocks-little", "blocks-big"):
        add(f"convert gguf-gguf {name}", "convert in/m.gguf", {"m.gguf": f"gguf/{name}.gguf"}, "m.gguf", WRITE, 1.5)
    for output in ("m.safetensors", "m.pt", "m", "m.gguf"):
        add(f"convert generic {output}", "convert in/m.gguf", {"m.gguf": "made/gguf/generic.gguf"}, output, WRITE, 1)
    for name in ("alone big-endian deflated legacy lightning list metadata opaque parameters plain protocol-1 protocol-1-legacy protocol-3 protocol-4 protocol-4-legacy "
                 "protocol-5 shared shared-legacy streamed strided types types-legacy refused-sparse refused-command").split():
        add(f"convert pytorch {name}", "convert in/m.bin", {"m.bin": f"pytorch/{name}.bin"}, "m.safetensors", {**WRITE, "--key": ["state_dict", "x", ""]}, 1.2)
        add(f"inspect pytorch {name}", "inspect in/m.bin --tensors", {"m.bin": f"pytorch/{name}.bin"}, None, {"--key": ["state_dict", "x", "", "a.b.0"]}, 0.5)
    for name in ("plain", "types", "strided", "shared"):
        add(f"convert safetensors {name}", "convert in/m.safetensors --generic", {"m.safetensors": f"pytorch/{name}.safetensors"}, "m.gguf", WRITE)
        add(f"convert safetensors-bin {name}", "convert in/m.safetensors", {"m.safetensors": f"pytorch/{name}.safetensors"}, "m.bin", WRITE, 0.5)
    adapters(add, write)
    models_and_banks(add, write)
    return out


def adapters(add, write):
    merge = {**write, **COMBINE}
    base_of = {"lora-conv1d": "gpt2", "lora-dora-conv1d": "gpt2", "ia3-conv1d": "gpt2", "randlora-conv1d": "gpt2", "vera-conv1d": "gpt2", "adalora-whole": "gpt2",
               "lora-experts": "qwen3moe", "lycoris/norms.safetensors": "gpt2"}
    kinds = ("adalora adalora-whole boft ia3 ia3-conv1d loha lokr lokr-low-rank lora lora-biases lora-conv1d lora-dora lora-dora-conv1d lora-embedding lora-experts "
             "lora-saved norms oft oft-blocks oft-coft oft-embedding oft-shared oft-solve randlora randlora-conv1d tokens vblora vblora-topk vera vera-conv1d").split()
    kinds += [f"lycoris/{n}.safetensors" for n in ("dora dora-inputs full glora ia3 ia3-inputs loha loha-dora lokr lokr-both lokr-dora lokr-whole lora lora-rs norms").split()]
    for kind in kinds:
        base = base_of.get(kind, "qwen2")
        slot = "a.safetensors" if kind.endswith("safetensors") else "a"
        inputs = {"b": f"made/bases/{base}", slot: f"adapters/{kind}"}
        only = [slot]
        add(f"merge {kind}", f"merge in/b in/{slot}", inputs, "m", merge, 1.5, only)
        add(f"merge gguf {kind}", f"merge in/b in/{slot} --type q8_0", inputs, "m.gguf", merge, 0.5)
        add(f"merge of-gguf {kind}", f"merge in/b.gguf in/{slot}", {"b.gguf": f"made/gguf/base-{base}.gguf", slot: f"adapters/{kind}"}, "m.gguf", merge, 0.4)
        add(f"inspect {kind}", f"inspect in/{slot} --tensors", {slot: f"adapters/{kind}"}, None, {"--json": [None]}, 0.4)
        if kind in ("lora", "lora-embedding") or kind.startswith(("randlora", "vblora", "vera", "lycoris/lora")):
            add(f"merge to-lora {kind}", f"merge in/b in/{slot} --to lora", inputs, "l", merge, 0.6, only)
        if kind in ("lora", "lora-embedding"):
            add(f"convert lora-gguf {kind}", "convert in/a --base in/b", inputs, "l.gguf", WRITE, 2)
        if base == "qwen2" and slot == "a":
            add(f"generate {kind}", "generate in/b --adapter in/a --prompt x --max-tokens 1", inputs, None, None, 0.2, only)
    for kind in "bf16 embeddings patterns plain ranks rslora zero-alpha".split():
        add(f"convert lora-gguf lora/{kind}", "convert in/a --base in/b", {"a": f"lora/{kind}", "b": "made/lora-base"}, "l.gguf", WRITE, 1)
        add(f"inspect lora/{kind}", "inspect in/a", {"a": f"lora/{kind}"}, None, {"--json": [None]}, 0.3)
    for gguf, base in (("reverse", "demo/base"), ("qwen2", "made/bases/qwen2")):
        add(f"convert gguf-lora {gguf}", "convert in/a.gguf --to lora --base in/b", {"b": base, "a.gguf": f"made/loras/{gguf}.gguf"}, "l", WRITE, 2, ["a.gguf"])
        add(f"merge gguf-lora {gguf}", "merge in/b in/a.gguf", {"b": base, "a.gguf": f"made/loras/{gguf}.gguf"}, "m", merge, 1 if gguf == "qwen2" else 0.2, ["a.gguf"])
    three = {"b": "combine/base", "one": "combine/one", "two": "combine/two", "three": "combine/three"}
    for method in LORA_METHODS:
        density = "" if method in ("linear", "cat", "svd") else " --density 0.6"
        for output, more in (("m", ""), ("l", " --to lora"), ("l", " --to lora --rank 2")):
            add(f"merge {method}{more}", f"merge in/b in/one in/two=0.5 in/three=-0.7 --method {method}{density}{more}", three, output, merge, 0.8, ["one", "two", "b"])
    add("merge sum", "merge in/b in/one in/two=0.5", three, "l", {**merge, "--to": ["lora"]}, 1, ["one", "two"])
    for method in MODEL_METHODS:
        others = "in/one" if method == "slerp" else "in/one in/two"
        density = " --density 0.6" if any(word in method for word in ("ties", "dare", "della", "breadcrumbs")) else " --t 0.4" if method == "slerp" else ""
        models = {"b": "made/combine/base", "one": "made/combine/a", "two": "made/combine/b"}
        add(f"merge models {method}", f"merge in/b {others} --method {method}{density}", models, "m", merge, 1.2, ["b", "one"])
    for tuned, base in (("lora", "qwen2"), ("lora-conv1d", "gpt2"), ("lora-experts", "qwen3moe"), ("lora-biases", "qwen2"), ("norms", "qwen2")):
        options = {**WRITE, "--rank": COUNTS, "--energy": SHARES, "--seed": COUNTS, "--json": [None]}
        add(f"extract {tuned}", "extract in/b in/t", {"b": f"adapters/base/{base}-float32", "t": f"made/tuned/{tuned}"}, "l", options, 1.5)
        add(f"compare {tuned}", "compare in/b in/t", {"b": f"adapters/base/{base}-float32", "t": f"made/tuned/{tuned}"}, None, {"--json": [None], "--tensors": [None]}, 0.5)


def models_and_banks(add, write):
    ask = ["--instruction", "ab c d", "--prompt", "x y z"]
    route = {"--routing": ["model", "prior", "x"], "--prompt": ["", "x", "y" * 20000], "--json": [None], "--instruction": ["", "z"]}
    banks = [(f"made/routing/{case}", f"routing/{case}/adapter") for case in ("llama-all-linear-rslora", "llama-no-instruction", "llama-prompt", "llama-token",
                                                                              "qwen2-prompt", "qwen3-prompt")]
    banks += [("demo/base", "made/banks/built"), ("demo/base", "made/banks/encoder")]
    for base, bank in banks:
        name, inputs = bank.split("/")[1 if bank.startswith("routing") else 2], {"b": base, "a": bank}
        if name == "encoder":
            inputs["e"] = "sentence/encoder"
        only = ["a"] if bank != "routing/llama-prompt/adapter" else ["a", "b"]
        add(f"inspect bank {name}", "inspect in/a", {"a": bank}, None, {"--json": [None], "--tensors": [None]}, 1)
        add(f"route {name}", ["route", "in/b", "in/a", *ask], inputs, None, route, 1.2, only)
        add(f"generate bank {name}", ["generate", "in/b", "--adapter", "in/a", *ask, "--max-tokens", "1"], inputs, None, None, 0.5, only)
        add(f"bake hf {name}", ["bake", "in/b", "in/a", *ask], inputs, "m", {**write, **route}, 0.5, only)
        add(f"bake lora {name}", ["bake", "in/b", "in/a", *ask, "--to", "lora", "--no-verify"], inputs, "l", {**WRITE, **route}, 1, only)
        add(f"bake gguf {name}", ["bake", "in/b", "in/a", *ask, "--type", "q8_0", "--no-verify"], inputs, "m.gguf", {**write, **route}, 0.5, only)
    generate = {"--max-tokens": ["0", "-1", "1", "2", "x", "18446744073709551616"], "--template": ["{prompt}", "{instruction}", "", "{x}", "{prompt} {instruction}:", "{"],
                "--ignore-eos": [None], "--json": [None], "--adapter": ["in/m", "in/none", ""], "--prompt": ["", "z" * 5000, "\x1b"]}
    imatrix = {"--ctx": COUNTS, "--chunks": COUNTS, "--process-output": [None], "--output-format": ["gguf", "dat", "x"], "--device": ["cpu", "cuda:0", "x", "cuda:99"]}
    for name, model in (("demo", "demo/base"), ("llama-spm", "convert/llama-spm-json/model"), ("qwen2", "made/routing/qwen2-prompt"), ("qwen3", "made/routing/qwen3-prompt"), ("pytorch", "convert/llama-pytorch/model")):
        add(f"generate {name}", ["generate", "in/m", *ask, "--max-tokens", "1"], {"m": model}, None, generate, 1.5)
        add(f"generate logits {name}", ["generate", "in/m", *ask, "--max-tokens", "1", "--save-logits", "out/logits"], {"m": model}, None, generate, 0.3)
        add(f"imatrix {name}", "imatrix in/m in/text.txt --ctx 48 --chunks 1", {"m": model, "text.txt": "quant/imatrix/text.txt"}, "i.gguf", imatrix, 0.7)
    for name in ("demo", "llama-Q4_K_M", "llama-spm"):
        add(f"imatrix gguf {name}", "imatrix in/m.gguf in/text.txt --ctx 48 --chunks 1", {"m.gguf": f"made/gguf/{name}.gguf", "text.txt": "quant/imatrix/text.txt"}, "i.dat", imatrix, 0.7)
        add(f"generate gguf {name}", ["generate", "in/m.gguf", *ask, "--max-tokens", "1"], {"m.gguf": f"made/gguf/{name}.gguf"}, None, generate, 0.7)
    for form in ("gguf", "dat"):
        inputs = {"m.gguf": "made/gguf/llama-f32.gguf", f"i.{form}": f"quant/imatrix/llama.{form}"}
        add(f"quantize imatrix-{form}", f"quantize in/m.gguf --type IQ4_NL --imatrix in/i.{form}", inputs, "q.gguf", write, 4, [f"i.{form}"])
    add("inspect imatrix-gguf", "inspect in/i.gguf", {"i.gguf": "quant/imatrix/llama.gguf"}, None, None, 0.5)
    loras = {"b": "demo/base", "reverse": "made/loras/reverse", "capitals": "made/loras/capitals", "e": "sentence/encoder"}
    build = {"--rank": COUNTS, "--top-k": COUNTS, "--describe": ["reverse=x", "reverse=", "=x", "x", "nobody=x", "reverse=" + "y" * 5000, "capitals=\x1b"], "--json": [None]}
    add("bank build", "bank build in/b in/reverse in/capitals", loras, "bank", build, 6, ["reverse", "capitals"])
    add("bank build encoder", "bank build in/b in/reverse in/capitals --encoder in/e", loras, "bank", build, 4, ["e"])
    add("merge demo", "merge in/b in/reverse", loras, "m.gguf", {**write, **COMBINE}, 0.5, ["reverse", "b"])
    for kind in ("bank", "lora"):
        files = {"base": "demo/base", "rows.jsonl": "made/train/rows.jsonl", f"{kind}.toml": f"made/train/{kind}.toml"}
        short = ["--set", "training.steps=1", "--set", "training.gradient_accumulation=1", "--set", "output=out/run"]
        settings = {"--set": [f"{key}={value}" for key in ("seed", "adapter.r", "adapter.lora_alpha", "adapter.num_atoms", "adapter.top_k", "adapter.block_size", "adapter.key_dim",
                    "adapter.descriptor_dim", "adapter.prior_strength", "adapter.prior_temperature", "adapter.temperature", "training.batch_size", "training.learning_rate",
                    "training.warmup_steps", "training.eval_every", "training.checkpoint_every", "training.weight_decay", "training.clip_norm", "data.max_length",
                    "data.eval_fraction", "training.lambda_prior", "training.lambda_balance", "adapter.dropout", "x", "", "adapter", "adapter.x.y")
                    for value in ("0", "-1", "1", "1.5", "nan", "inf", "1e308", "1e-320", "2147483647", "9223372036854775807", "9223372036854775808", "x", "[]", "\"\"", "true")]}
        add(f"train {kind}", ["train", f"in/{kind}.toml", *short], files, None, settings, 6, [f"{kind}.toml", f"{kind}.toml", f"{kind}.toml", "rows.jsonl"])
        add(f"train base {kind}", ["train", f"in/{kind}.toml", *short], files, None, None, 0.5, ["base"])
    add("train encoder", ["train", "in/bank.toml", "--set", "training.steps=1", "--set", "output=out/run", "--set", "adapter.instruction_encoder=in/e"],
        {"base": "demo/base", "rows.jsonl": "made/train/rows.jsonl", "bank.toml": "made/train/bank.toml", "e": "sentence/encoder"}, None, None, 1, ["e"])
