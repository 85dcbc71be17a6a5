"""Merges adapters in the forms in which people have them with atombank, and the same with PEFT, transformers and bitsandbytes.

    python forms.py ATOMBANK_BINARY WORK_DIR [PART ..]

PART is quantized, heads, names or other; without any, all are tried. Merged weights have to be those of the libraries bit by
bit: for bases that bitsandbytes had quantized, its own dequantized weights plus PEFT's update; for heads, the model of the
task's class that PEFT's merge saves; for classes whose checkpoints have other names than the class, the names and weights that
transformers saves. Each check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import json
import shutil
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from common import WORK, atombank, check, finish
from models import DTYPES, guarded, tensors

warnings.filterwarnings("ignore")
torch.set_num_threads(1)                # torch's sums depend on the number of threads
PARTS = sys.argv[3:] or ["quantized", "heads", "names", "other"]
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=72, vocab_size=160)
LLAMA = SMALL | dict(num_key_value_heads=2, tie_word_embeddings=False)
IMAGES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=8)


def saved(name, model, dtype="bf16"):
    """The folder of a model with random values that are larger than a fresh model's."""
    folder = WORK / f"base-{name}"
    torch.manual_seed(3)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape) * 0.1)
    model.to(DTYPES[dtype]).save_pretrained(folder)
    return folder


def adapter(name, model, **settings):
    """An adapter of the model with random factors, saved, and PEFT's model."""
    torch.manual_seed(5)
    config = peft.LoraConfig(**dict(r=4, lora_alpha=6, init_lora_weights=False) | settings)
    made = peft.get_peft_model(model, config)
    folder = WORK / f"adapter-{name}"
    made.save_pretrained(folder)
    return made, folder


def same(name, out, expected, zeros=False):
    """Whether two folders have the same tensors, bit by bit; with `zeros`, but for the sign of zeros."""
    found, wanted = tensors(out), tensors(expected)
    other = sorted(set(found) ^ set(wanted))
    common = [key for key in wanted if key in found]
    wrong = [key for key in common if found[key].dtype != wanted[key].dtype or found[key].shape != wanted[key].shape
             or not (torch.equal(found[key], wanted[key]) if zeros else torch.equal(found[key].view(torch.uint8), wanted[key].view(torch.uint8)))]
    detail = f"{len(common)} tensors" + (f", only in one: {other[:4]}" if other else "") + (f", differing: {wrong[:4]} of {len(wrong)}" if wrong else (", equal but for the sign of zeros" if zeros else ", bit-equal"))
    check(name, not other and not wrong and common, detail)


def merged(name, *args):
    out = WORK / f"out-{name}"
    shutil.rmtree(out, ignore_errors=True)
    atombank("merge", *args, "-o", out, "--quiet")
    return out


# ---- bases that were quantized while the adapter was trained

def quantized(kind, double, dtype, sizes):
    import bitsandbytes.functional as bnb
    name = f"{kind}{'-double' if double else ''}-{dtype}-{sizes['hidden_size']}"
    config = transformers.LlamaConfig(**LLAMA | sizes)
    base = saved(name, transformers.LlamaForCausalLM(config), dtype)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=DTYPES[dtype])
    _, folder = adapter(name, model, target_modules=["q_proj", "down_proj"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=DTYPES[dtype])
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and path != "lm_head":
                weight = module.weight.data
                if kind == "int8":
                    codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
                    module.weight = torch.nn.Parameter(bnb.int8_vectorwise_dequant(codes, scales))
                else:
                    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=double)
                    module.weight.data = bnb.dequantize_4bit(codes, state)
    expected = WORK / f"expected-{name}"
    whole = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    whole.to(DTYPES[dtype]).save_pretrained(expected)
    options = ["--base-quant", kind] + (["--double-quant"] if double else [])
    # FP4 has two zeros; which one the library gives back depends on the kernel that it runs.
    same(f"quantized base: {name}", merged(name, base, folder, *options), expected, zeros=kind == "fp4")


# ---- heads for tasks

def head(name, config, auto, base_auto, **settings):
    base = saved(f"head-{name}", base_auto.from_config(config))
    more = settings.pop("labels", None)
    def load():
        model = auto.from_pretrained(base, dtype=torch.bfloat16, **({"num_labels": more} if more else {}))
        if name == "answers":
            # This class calls the inner model by another name, under which transformers finds none of the base's tensors.
            model.transformer = transformers.AutoModel.from_pretrained(base, dtype=torch.bfloat16)
        return model
    made, folder = adapter(f"head-{name}", load(), **settings)
    with torch.no_grad():
        for key, value in made.named_parameters():
            if "modules_to_save" in key:
                value.copy_(torch.randn(value.shape) * 0.1)
    made.save_pretrained(folder)
    expected = WORK / f"expected-head-{name}"
    peft.PeftModel.from_pretrained(load(), folder).merge_and_unload().save_pretrained(expected)
    out = merged(f"head-{name}", base, folder)
    same(f"head: {name}", out, expected)
    read = lambda place: json.loads((place / "config.json").read_text())
    fields = ["architectures", "id2label", "label2id"]
    check(f"config of the head: {name}", all(read(out).get(f) == read(expected).get(f) for f in fields), {f: read(out).get(f) for f in fields})


# ---- names of classes and of checkpoints

def vision_language(model_type, text, **more):
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8)
    return transformers.AutoConfig.for_model(model_type, text_config=LLAMA | text, vision_config=vision | more.pop("vision", {}), **more)


IMAGE = transformers.AutoModelForImageClassification
PAIRS = transformers.AutoModelForImageTextToText
NAMES = {
    "vit": (IMAGE, lambda: transformers.ViTConfig(**IMAGES)),
    "beit": (IMAGE, lambda: transformers.BeitConfig(**IMAGES)),
    "dinov2": (IMAGE, lambda: transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8)),
    "swin": (IMAGE, lambda: transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2)),
    "segformer": (IMAGE, lambda: transformers.SegformerConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=16)),
    "llava": (PAIRS, lambda: vision_language("llava", dict(model_type="llama"), vision=dict(model_type="clip_vision_model"))),
    "gemma3": (PAIRS, lambda: vision_language("gemma3", dict(model_type="gemma3_text", head_dim=8, tie_word_embeddings=True), vision=dict(model_type="siglip_vision_model"))),
    "paligemma": (PAIRS, lambda: vision_language("paligemma", dict(model_type="gemma", head_dim=8), vision=dict(model_type="siglip_vision_model"), projection_dim=32)),
    "internvl": (PAIRS, lambda: vision_language("internvl", dict(model_type="qwen2"), vision=dict(image_size=[16, 16], patch_size=[8, 8]))),
    "mistral3": (PAIRS, lambda: vision_language("mistral3", dict(model_type="mistral", head_dim=8), vision=dict(model_type="pixtral"))),
    "aya_vision": (PAIRS, lambda: vision_language("aya_vision", dict(model_type="cohere2"), vision=dict(model_type="siglip_vision_model"))),
    "phimoe": (AutoModelForCausalLM, lambda: transformers.PhimoeConfig(**LLAMA, num_local_experts=4)),
    "granitemoe": (AutoModelForCausalLM, lambda: transformers.GraniteMoeConfig(**LLAMA, num_local_experts=4)),
    "nemotron_h": (AutoModelForCausalLM, lambda: transformers.NemotronHConfig(
        hidden_size=32, hybrid_override_pattern="M*-", num_hidden_layers=3, intermediate_size=64, vocab_size=160, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, n_groups=2, chunk_size=8)),
    "olmo": (AutoModelForCausalLM, lambda: transformers.OlmoConfig(**LLAMA)),
    "opt": (AutoModelForCausalLM, lambda: transformers.OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, vocab_size=160, word_embed_proj_dim=32)),
}


def named(name):
    auto, config = NAMES[name]
    base = saved(f"names-{name}", auto.from_config(config()))
    load = lambda: auto.from_pretrained(base, dtype=torch.bfloat16)
    load().save_pretrained(base)        # in the types that transformers gives its tensors
    # PEFT has no adapter for what Mamba's kernels read.
    targets = ["in_proj", "q_proj", "up_proj", "down_proj"] if name == "nemotron_h" else "all-linear"
    _, folder = adapter(f"names-{name}", load(), target_modules=targets)
    expected = WORK / f"expected-names-{name}"
    peft.PeftModel.from_pretrained(load(), folder).merge_and_unload().save_pretrained(expected)
    same(f"names: {name}", merged(f"names-{name}", base, folder), expected)


EXPERTS = {
    "granitemoe": (lambda: transformers.GraniteMoeConfig(**LLAMA, num_local_experts=4), ["experts.gate_up_proj", "experts.down_proj"]),
    "phimoe": (lambda: transformers.PhimoeConfig(**LLAMA, num_local_experts=4), ["experts.down_proj"]),
    "jetmoe": (lambda: transformers.JetMoeConfig(hidden_size=32, num_hidden_layers=2, num_key_value_heads=2, kv_channels=8, intermediate_size=24, vocab_size=160, num_local_experts=4),
               ["mlp.input_linear.weight", "mlp.output_linear.weight"]),
    "nemotron_h": (lambda: transformers.NemotronHConfig(
        hidden_size=32, hybrid_override_pattern="M*E", num_hidden_layers=3, intermediate_size=64, vocab_size=160, num_attention_heads=4, head_dim=8, num_key_value_heads=2,
        mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, n_groups=2, chunk_size=8, n_routed_experts=4, moe_intermediate_size=24, moe_shared_expert_intermediate_size=24,
        num_experts_per_tok=2, n_group=1, topk_group=1), ["experts.up_proj", "experts.down_proj"]),
}


def experts(name):
    """LoRA of the parameters that hold the experts of a layer."""
    config, targets = EXPERTS[name]
    base = saved(f"experts-{name}", AutoModelForCausalLM.from_config(config()))
    load = lambda: AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    load().save_pretrained(base)        # in the types that transformers gives its tensors
    _, folder = adapter(f"experts-{name}", load(), target_modules=["q_proj"] if name != "jetmoe" else [], target_parameters=targets)
    expected = WORK / f"expected-experts-{name}"
    peft.PeftModel.from_pretrained(load(), folder).merge_and_unload().save_pretrained(expected)
    same(f"experts: {name}", merged(f"experts-{name}", base, folder), expected)


# ---- other forms

def inner(name, config):
    """An adapter of AutoModel on the checkpoint of a class around it."""
    base = saved(f"inner-{name}", AutoModelForCausalLM.from_config(config))
    _, folder = adapter(f"inner-{name}", transformers.AutoModel.from_pretrained(base, dtype=torch.bfloat16), target_modules="all-linear",
                        task_type="FEATURE_EXTRACTION")
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    core = getattr(whole, whole.base_model_prefix)
    merged_core = peft.PeftModel.from_pretrained(core, folder).merge_and_unload()
    setattr(whole, whole.base_model_prefix, merged_core)
    expected = WORK / f"expected-inner-{name}"
    whole.save_pretrained(expected)
    same(f"AutoModel: {name}", merged(f"inner-{name}", base, folder), expected)


def wrapped():
    """Names of wrappers, and mlx-lm's form, give what PEFT's own folder gives."""
    base = saved("wrapped", transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)))
    load = lambda: AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    _, folder = adapter("wrapped", load(), target_modules=["q_proj", "down_proj"])
    expected = WORK / "expected-wrapped"
    peft.PeftModel.from_pretrained(load(), folder).merge_and_unload().save_pretrained(expected)
    values = load_file(folder / "adapter_model.safetensors")
    for kind, rename in [("compiled", lambda n: n.replace("base_model.model.", "base_model.model._orig_mod.base_model.model.", 1)),
                         ("parallel", lambda n: "module." + n), ("named", lambda n: n.replace(".weight", ".default.weight"))]:
        other = WORK / f"wrapped-{kind}"
        other.mkdir(exist_ok=True)
        shutil.copy(folder / "adapter_config.json", other)
        save_file({rename(n): v for n, v in values.items()}, other / "adapter_model.safetensors")
        same(f"wrapped: {kind}", merged(f"wrapped-{kind}", base, other), expected)
    mlx = WORK / "wrapped-mlx"
    mlx.mkdir(exist_ok=True)
    kinds = {".lora_A.weight": ".lora_a", ".lora_B.weight": ".lora_b"}
    turned = {n[len("base_model.model."):].replace(end, kinds[end]): v.T.contiguous() for n, v in values.items() for end in kinds if n.endswith(end)}
    save_file(turned, mlx / "adapters.safetensors")
    (mlx / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 1.5, "dropout": 0.0}}))
    same("mlx-lm", merged("wrapped-mlx", base, mlx), expected)


if "quantized" in PARTS:
    for kind, double in [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True), ("int8", False)]:
        for dtype, sizes in [("bf16", dict(hidden_size=128, intermediate_size=320)), ("f16", dict(hidden_size=72, intermediate_size=100)), ("f32", dict(hidden_size=64, intermediate_size=172))]:
            guarded(f"{kind} {dtype}", lambda: quantized(kind, double, dtype, sizes))
if "heads" in PARTS:
    llama, causal = transformers.LlamaConfig(**LLAMA, pad_token_id=0), AutoModelForCausalLM
    sequences, tokens, answers = transformers.AutoModelForSequenceClassification, transformers.AutoModelForTokenClassification, transformers.AutoModelForQuestionAnswering
    qwen = transformers.Qwen2Config(**SMALL | dict(num_key_value_heads=2), pad_token_id=0, tie_word_embeddings=True)
    gpt2 = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=160, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=160)
    bert, roberta = transformers.BertConfig(**small), transformers.RobertaConfig(**small)
    for name, work in {
        "llama, 3 labels": lambda: head("llama", llama, sequences, causal, labels=3, task_type="SEQ_CLS", target_modules=["q_proj", "down_proj"]),
        "qwen2, 2 labels, tied": lambda: head("qwen2", qwen, sequences, causal, labels=2, task_type="SEQ_CLS", target_modules="all-linear"),
        "one label": lambda: head("reward", qwen, sequences, causal, labels=1, task_type="SEQ_CLS", target_modules=["v_proj"]),
        "llama, tokens": lambda: head("tokens", llama, tokens, causal, labels=5, task_type="TOKEN_CLS", target_modules=["v_proj"]),
        "llama, answers": lambda: head("answers", llama, answers, causal, task_type="QUESTION_ANS", target_modules=["v_proj"]),
        "bert": lambda: head("bert", bert, sequences, transformers.AutoModel, labels=3, task_type="SEQ_CLS", target_modules=["query", "dense"]),
        "bert, tokens": lambda: head("bert-tokens", bert, tokens, transformers.AutoModel, labels=3, task_type="TOKEN_CLS", target_modules=["query"]),
        "bert, answers": lambda: head("bert-answers", bert, answers, transformers.AutoModelForMaskedLM, task_type="QUESTION_ANS", target_modules=["query"]),
        "roberta": lambda: head("roberta", roberta, sequences, transformers.AutoModelForMaskedLM, labels=3, task_type="SEQ_CLS", target_modules=["query", "value"]),
        "gpt2": lambda: head("gpt2", gpt2, sequences, causal, labels=4, task_type="SEQ_CLS", target_modules=["c_attn"], fan_in_fan_out=True),
    }.items():
        guarded(name, work)
if "names" in PARTS:
    for name in NAMES:
        guarded(f"names: {name}", lambda: named(name))
    for name in EXPERTS:
        guarded(f"experts: {name}", lambda: experts(name))
if "other" in PARTS:
    guarded("inner olmo", lambda: inner("olmo", transformers.OlmoConfig(**LLAMA)))
    guarded("inner llama", lambda: inner("llama", transformers.LlamaConfig(**LLAMA)))
    guarded("wrapped", wrapped)
finish("forms")
