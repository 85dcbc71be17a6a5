"""The inputs that are mutated: the fixtures, and what the program makes of them once for a run."""
import json
import math
import os
import shutil
import struct
import subprocess
from pathlib import Path

SMALL = ["bert", "falcon", "gemma3", "gpt-neox", "gpt2", "granite", "llama-pytorch", "mixtral", "olmo2", "phi3", "qwen2moe", "qwen3moe", "roberta",
         "smollm3", "stablelm", "starcoder2", "xlm-roberta", "distilbert", "gemma2", "llama-spm"]


def read_safetensors(path):
    data = Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {k: (v["dtype"], v["shape"], data[8 + size + v["data_offsets"][0]:8 + size + v["data_offsets"][1]]) for k, v in header.items()}


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, part) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(struct.pack("<Q", len(head)) + head + data)


def numbers(count, seed):
    state, out = seed * 2654435761 + 1, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(0.1 * ((state >> 40) / 2**23 - 1.0))
    return struct.pack(f"<{count}f", *out)


def lora(folder, sites, rank, seed, card=None):
    tensors = {}
    for i, (site, rows, columns) in enumerate(sites):
        tensors[f"base_model.model.{site}.lora_A.weight"] = ("F32", [rank, columns], numbers(rank * columns, seed + 2 * i))
        tensors[f"base_model.model.{site}.lora_B.weight"] = ("F32", [rows, rank], numbers(rows * rank, seed + 2 * i + 1))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    modules = sorted({site.rsplit(".", 1)[1] for site, _, _ in sites})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": modules, "task_type": "CAUSAL_LM",
                                                            "base_model_name_or_path": None, "use_rslora": False}))
    if card:
        (folder / "README.md").write_text(card)


class Inputs:
    """A folder with the fixtures that are used, and `made/`."""

    def __init__(self, fixtures, folder, binary):
        self.folder, self.binary = Path(folder), str(binary)
        self.failed = []
        ignored = shutil.ignore_patterns("expected*", "*.py", "merged-*", "training*", "train.jsonl", "encode", "recipes")
        for name in ("adapters", "combine", "convert", "demo", "gguf", "lora", "pytorch", "quant/imatrix", "routing", "sentence", "vocab"):
            shutil.copytree(fixtures / name, self.folder / name, ignore=ignored)
        for path in self.folder.rglob("*"):
            if path.is_file() and path.stat().st_size > 3_000_000:
                raise ValueError(f"{path} is too large to be mutated")

    def path(self, name):
        return self.folder / name

    def run(self, *args):
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "CANDLE_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([self.binary, *map(str, args), "--quiet", "--threads", "1"], cwd=self.folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            self.failed.append(f"{' '.join(map(str, args))}: {done.returncode}: {done.stderr.strip()[-300:]}")

    def make(self):
        made = self.path("made")
        for name in ("gguf", "merged", "tuned", "loras", "banks", "pytorch", "split"):
            (made / name).mkdir(parents=True, exist_ok=True)
        self.tokenizers()
        for name in SMALL:
            self.run("convert", f"convert/{name}/model", "-o", f"made/gguf/{name}.gguf", "--type", "source")
        for kind in ("f32", "Q4_K_M", "IQ4_XS"):
            self.run("convert", "convert/llama/model", "-o", f"made/gguf/llama-{kind}.gguf", "--type", kind)
        self.run("convert", "demo/base", "-o", "made/gguf/demo.gguf")
        self.run("convert", "convert/llama/model", "-o", "made/gguf/vocab.gguf", "--vocab-only")
        self.run("convert", "pytorch/types.safetensors", "-o", "made/gguf/generic.gguf", "--generic")
        for model in sorted(self.path("vocab").glob("*/model")):
            shutil.copy(self.path("pytorch/plain.safetensors"), model / "model.safetensors")
        self.run("convert", "convert/starcoder2/model", "-o", "made/split/m.gguf", "--split-max-tensors", "20")
        self.run("convert", "convert/starcoder2/model", "-o", "made/pytorch/starcoder2", "--to", "pytorch", "--shard-size", "90KB")
        for base in ("qwen2", "gpt2", "qwen3moe"):
            self.run("convert", f"made/bases/{base}", "-o", f"made/gguf/base-{base}.gguf", "--type", "source")
        for name, base in (("lora", "qwen2"), ("lora-conv1d", "gpt2"), ("lora-experts", "qwen3moe"), ("lora-biases", "qwen2"), ("norms", "qwen2")):
            self.run("merge", f"adapters/base/{base}-float32", f"adapters/{name}", "-o", f"made/tuned/{name}")
        self.models()
        self.loras()
        self.banks()
        self.training()

    def tokenizers(self):
        """Bases that have none get one of as many tokens as they have."""
        whole = json.loads(self.path("demo/base/tokenizer.json").read_text())
        names = sorted(whole["model"]["vocab"], key=whole["model"]["vocab"].get)
        bases = [(self.path(f"adapters/base/{b}-float32"), self.path(f"made/bases/{b}")) for b in ("qwen2", "gpt2", "qwen3moe")]
        bases += [(p.parent, self.path(f"made/routing/{p.parent.parent.name}")) for p in self.path("routing").glob("*/model/config.json")]
        for source, target in sorted(bases):
            shutil.copytree(source, target)
            config = json.loads((target / "config.json").read_text())
            size = config["vocab_size"]
            for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if isinstance(config.get(key), int):
                    config[key] = min(config[key], size - 1)
            (target / "config.json").write_text(json.dumps(config))
            small = json.loads(json.dumps(whole))
            small["model"]["vocab"] = {name: i for i, name in enumerate(names[:size])}
            if size < 260:
                small["model"]["vocab"] = {name: i for i, name in enumerate([*names[:size - 1], names[0] + names[1]])}
                small["model"]["merges"] = [f"{names[0]} {names[1]}"]
                small["added_tokens"] = [token for token in small["added_tokens"] if token["id"] < size]
            else:
                pairs = [m if isinstance(m, list) else m.split(" ") for m in whole["model"]["merges"]]
                kept = small["model"]["vocab"]
                small["model"]["merges"] = [m for m in pairs if "".join(m) in kept and all(x in kept for x in m)]
                small["added_tokens"] = []
            (target / "tokenizer.json").write_text(json.dumps(small))
            (target / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')

    def models(self):
        groups = {}
        for key, tensor in read_safetensors(self.path("combine/models.safetensors")).items():
            group, name = key.split("/", 1)
            groups.setdefault(group, {})[name] = tensor
        for group, tensors in groups.items():
            write_safetensors(self.path(f"made/combine/{group}/model.safetensors"), tensors)
            shutil.copy(self.path("combine/base/config.json"), self.path(f"made/combine/{group}/config.json"))

    def loras(self):
        config = json.loads(self.path("demo/base/config.json").read_text())
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        for i, name in enumerate(("reverse", "capitals")):
            sites = [(f"model.layers.{layer}.{module}", rows, columns) for layer in range(config["num_hidden_layers"])
                     for module, rows, columns in (("self_attn.q_proj", hidden, hidden), ("mlp.up_proj", inner, hidden))]
            lora(self.path(f"made/loras/{name}"), sites, 2 + i, 100 * i, f"---\ndescription: Do {name}.\nlicense: mit\ntags: [a, b]\n---\n# {name}\n\nText.\n")
        self.run("convert", "made/loras/reverse", "--base", "demo/base", "-o", "made/loras/reverse.gguf", "--type", "f32")
        self.lora_base()
        self.run("convert", "adapters/lora", "--base", "made/bases/qwen2", "-o", "made/loras/qwen2.gguf", "--type", "f32")

    def lora_base(self):
        """The base of the LoRAs in lora/, of which the fixtures have the config."""
        config = json.loads(self.path("lora/base/config.json").read_text())
        hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        queries, keys = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
        shapes = {"model.embed_tokens": [size, hidden], "lm_head": [size, hidden], "model.norm": [hidden]}
        for layer in range(config["num_hidden_layers"]):
            for name, shape in {"input_layernorm": [hidden], "post_attention_layernorm": [hidden], "self_attn.q_proj": [queries, hidden],
                                "self_attn.k_proj": [keys, hidden], "self_attn.v_proj": [keys, hidden], "self_attn.o_proj": [hidden, queries],
                                "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden], "mlp.down_proj": [hidden, inner]}.items():
                shapes[f"model.layers.{layer}.{name}"] = shape
        write_safetensors(self.path("made/lora-base/model.safetensors"),
                          {f"{name}.weight": ("F32", shape, numbers(math.prod(shape), 900 + i)) for i, (name, shape) in enumerate(shapes.items())})
        shutil.copy(self.path("lora/base/config.json"), self.path("made/lora-base/config.json"))

    def banks(self):
        self.run("bank", "build", "demo/base", "made/loras/reverse", "made/loras/capitals", "-o", "made/banks/built")
        self.run("bank", "build", "demo/base", "made/loras/reverse", "made/loras/capitals", "-o", "made/banks/encoder", "--encoder", "sentence/encoder")
        # Where a case has its encoder.
        config = self.path("made/banks/encoder/adapter_config.json")
        config.write_text(config.read_text().replace("sentence/encoder", "in/e"))

    def training(self):
        rows = [{"instruction": "ab c d", "prompt": "x y z", "completion": "z y x"}, {"instruction": "d e", "prompt": "one", "completion": "o n e"},
                {"prompt": "x", "completion": "y"}, {"instruction": "d e", "prompt": "other", "completion": "o t"}]
        self.path("made/train").mkdir()
        self.path("made/train/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for kind in ("bank", "lora"):
            text = self.path(f"demo/{kind}.toml").read_text()
            for old, new in (("fixtures/demo/base", "in/base"), ("fixtures/demo/train.jsonl", "in/rows.jsonl"), ("fixtures/demo/heldout.jsonl", "in/rows.jsonl"),
                             (f"runs/{kind}", "out/run"), ("steps = 160", "steps = 1"), ("batch_size = 32", "batch_size = 2"),
                             ("warmup_steps = 16", "warmup_steps = 0"), ("eval_every = 80", "eval_every = 0"), ("checkpoint_every = 80", "checkpoint_every = 1")):
                text = text.replace(old, new)
            more = "schedule = \"constant\"\nweight_decay = 0.01\nclip_norm = 1.0\n" + ("lambda_prior = 0.1\nlambda_balance = 0.01\n" if kind == "bank" else "")
            self.path(f"made/train/{kind}.toml").write_text(text + more)
        self.path("made/metadata.json").write_text(json.dumps({"general.name": "x", "general.tags": ["a"], "general.license": "mit", "general.base_models": [{"name": "y"}]}))
        self.path("made/types.txt").write_text("attn_v=q8_0\nffn_down=q5_1 output=f16\n")

    def snapshot(self):
        """What must never change: names, sizes and times of every file."""
        return {str(p.relative_to(self.folder)): (s.st_size, s.st_mtime_ns) for p in self.folder.rglob("*") for s in [p.lstat()]}
