"""Packs the linear layers of a small model as every quantizer does, has atombank read it, and compares bit by bit.

    python prequantized.py ATOMBANK_BINARY WORK_DIR [PACKERS ...]

The packers and what they say of their values are those of packers.py. The packed model has to become the GGUF that the
same model in plain F32 becomes, in F32, BF16, Q8_0 and Q4_K_M; the folder that has the values rounded to BF16; with a
LoRA what PEFT makes of that folder; and the mean of two such models the mean of the two folders. Each check prints a
line; the last line counts them. Exit code 1 where one failed.
"""
import json
import shutil
import sys
import traceback
import zlib

import gguf
import peft
import torch
import transformers
from safetensors.torch import save_file

from common import WORK, atombank, check, finish
from models import fixture, tensors
from packers import PACKERS, mxfp4, packed

TYPES = ["f32", "bf16", "q8_0", "Q4_K_M"]


def model(seed):
    """A Llama's tensors in BF16."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(hidden_size=128, num_hidden_layers=2, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2,
                                      vocab_size=320, tie_word_embeddings=False, initializer_range=0.1)
    return config, transformers.LlamaForCausalLM(config).to(torch.bfloat16).state_dict()


def save(folder, config, state, dtype, **fields):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {**config.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": dtype, **fields}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.clone().contiguous() for name, value in state.items()}, folder / "model.safetensors", {"format": "pt"})
    for file in fixture("llama").glob("tokenizer*"):
        shutil.copy(file, folder)


def bits(value, signed):
    """A tensor's bits. Where `signed` is false, a zero has no sign."""
    return (value if signed else value + 0).contiguous().view(torch.uint8)


def contents(path, signed=True):
    kinds = {gguf.GGMLQuantizationType.F32: torch.float32, gguf.GGMLQuantizationType.BF16: torch.bfloat16}
    of = lambda t: torch.from_numpy(t.data.copy()).view(kinds.get(t.tensor_type, torch.uint8))
    plain = lambda t: bits(of(t), signed or t.tensor_type not in kinds).numpy().tobytes()
    return {t.name: (t.tensor_type, plain(t)) for t in gguf.GGUFReader(path).tensors}


def same(found, expected, signed=True):
    """Whether two folders have the same tensors, and what differs."""
    wrong = [name for name in expected if name not in found or found[name].dtype != expected[name].dtype
             or not torch.equal(bits(found[name], signed), bits(expected[name], signed))]
    return sorted(found) == sorted(expected) and not wrong, f"{len(expected)} tensors, {len(wrong)} differ {wrong[:2]}"


def lora_of(folder, where):
    """A LoRA of random weights, and what PEFT makes of the model in `folder` with it."""
    torch.manual_seed(3)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    shutil.rmtree(where, ignore_errors=True)
    adapted.save_pretrained(where)
    return adapted.merge_and_unload().state_dict()


def one(name, settings, pack):
    here = WORK / name
    # By the processor, bitsandbytes gives a zero of FP4 its sign or not.
    signed = not name.startswith("bnb-fp4")
    is_linear = lambda name: "_proj.weight" in name
    folders = []
    for seed in (zlib.crc32(name.encode()), 7):
        config, state = model(seed)
        torch.manual_seed(seed)
        stored, plain = packed(state, pack, is_linear)
        wide = {name: value.float().contiguous() for name, value in plain.items()}
        half = {name: value.to(torch.bfloat16).contiguous() for name, value in plain.items()}
        at = here / str(len(folders))
        save(at / "packed/model", config, stored, "bfloat16", **({"quantization_config": settings} if settings else {}))
        save(at / "wide/model", config, wide, "float32")
        save(at / "half/model", config, half, "bfloat16")
        folders.append((at, half))
    (a, half), (b, _) = folders
    for kind in TYPES:
        out = [here / f"{side}-{kind}.gguf" for side in ("packed", "wide")]
        for side, path in zip(("packed", "wide"), out):
            atombank("convert", a / side / "model", "-o", path, "--type", kind, "--pre", "gpt-2", "--overwrite")
        found, expected = (contents(path, signed) for path in out)
        wrong = [name for name in expected if found.get(name) != expected[name]]
        check(f"{name} to {kind}", sorted(found) == sorted(expected) and not wrong, f"{len(expected)} tensors, {len(wrong)} differ {wrong[:2]}")
    atombank("convert", a / "packed/model", "-o", here / "plain", "--overwrite")
    says = json.loads((here / "plain/config.json").read_text())
    check(f"{name} as a folder", "quantization_config" not in says and says["dtype"] == "bfloat16", "config.json is a plain model's")
    check(f"{name} as a folder", *same(tensors(here / "plain"), half, signed))
    merged = lora_of(a / "half/model", here / "lora")
    atombank("merge", a / "packed/model", here / "lora", "-o", here / "merged", "--overwrite")
    check(f"{name} with a LoRA", *same(tensors(here / "merged"), merged, signed))
    for side in ("packed", "half"):
        atombank("merge", a / side / "model", f"{a / side / 'model'}=0.25", f"{b / side / 'model'}=0.75", "-o", here / f"mean-{side}", "--method", "linear", "--overwrite")
    check(f"{name} combined", *same(tensors(here / "mean-packed"), tensors(here / "mean-half"), signed))


def experts():
    """gpt-oss' experts in a folder of an unknown class."""
    torch.manual_seed(1)
    parts, values = mxfp4(3, 40, 96)
    stored = {"lm_head.weight": torch.randn(4, 32).to(torch.bfloat16), **{f"layers.0.experts.up{end}": part for end, part in parts.items()}}
    config = transformers.PretrainedConfig()
    save(WORK / "experts", config, stored, "bfloat16", architectures=["Odd"], quantization_config={"quant_method": "mxfp4"})
    atombank("convert", WORK / "experts", "-o", WORK / "experts-plain", "--overwrite")
    expected = {"lm_head.weight": stored["lm_head.weight"], "layers.0.experts.up": values.to(torch.bfloat16).contiguous()}
    check("mxfp4 as a folder", *same(tensors(WORK / "experts-plain"), expected))


for name in sys.argv[3:] or PACKERS:
    settings, pack = PACKERS[name]
    try:
        one(name, settings, pack)
    except Exception as e:
        traceback.print_exc()
        check(name, False, str(e)[:300])
experts()
finish("prequantized")
