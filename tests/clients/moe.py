"""Makes mixtures of experts of small dense models with atombank and with mergekit-moe.

    python moe.py ATOMBANK_BINARY WORK_DIR

mergekit 0.1.5 has to be importable. Both make a mixture of the same file. transformers then loads both folders: the
configs have to be the same, the experts, the noise, random gates and everything else have to have the same bits.
mergekit runs the base in bfloat16, so gates of hidden states are compared with those of the same code in float32, to
1e-4, and with its own to what bfloat16 costs. llama.cpp loads the GGUF of a mixture and has transformers' logits. Each
check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import json
import shutil

import torch
import transformers
import yaml
from mergekit.moe import router
from mergekit.moe.config import MoEMergeConfig
from mergekit.options import MergeOptions
from mergekit.scripts import moe
from safetensors.torch import load_file

from common import FIXTURES, WORK, atombank, check, compare_logits, finish, hf_logits, llama_cpp, llama_cpp_logprobs, load_hf, log_softmax, prompt_of, readable

HIDDEN, ITS_OWN, EMBEDDED = 1e-4, 0.05, 1e-6
EXPERTS = 4
SCALES = {"noise_scale": 0.01, "residual_scale": 0.3}
PROMPTS = [["def main():", "return the number of words"], ["Once upon a time"], ["12 + 30 =", "3 * 7", "the sum is"],
           ["Dear Sir or Madam, I write to you"]]
# Name: the class that the models have, fields of the file, fields of the last expert.
CASES = {
    "mixtral-hidden": ("llama", dict(gate_mode="hidden"), {}),
    "mixtral-of-mistral": ("mistral", dict(gate_mode="hidden", dtype="float32", experts_per_token=3), {}),
    "mixtral-embedded": ("llama", dict(gate_mode="cheap_embed", dtype="float32"), SCALES),
    "mixtral-random": ("llama", dict(gate_mode="random", dtype="float16"), SCALES),
    "mixtral-defaults": ("llama-bare", dict(gate_mode="uniform_random"), {}),
    "qwen2-hidden": ("qwen2", dict(gate_mode="hidden", dtype="float32", shared=True), SCALES),
    "qwen2-of-llama": ("llama", dict(gate_mode="random", architecture="qwen", shared=True), SCALES),
    "qwen3-hidden": ("qwen3", dict(dtype="bfloat16"), SCALES),
    "qwen3-embedded": ("qwen3", dict(gate_mode="cheap_embed"), {}),
    "deepseek": ("llama", dict(gate_mode="random", architecture="deepseek", shared=True), SCALES),
}


def make_models(kind):
    """Dense models of one class that differ in all weights: as the fixture has it, and others at random."""
    fixture = FIXTURES / "convert" / kind.removesuffix("-bare") / "model"
    made = []
    for number in range(EXPERTS):
        folder = WORK / f"{kind}-{number}"
        config = transformers.AutoConfig.from_pretrained(fixture)
        torch.manual_seed(number)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.05)
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(fixture / name, folder)
        if kind.endswith("-bare"):
            # A config as older versions wrote it, which leaves out what the class's defaults say.
            path = folder / "config.json"
            bare = {k: v for k, v in json.loads(path.read_text()).items()
                    if k not in ("rms_norm_eps", "rope_parameters", "head_dim", "use_cache", "attention_bias", "mlp_bias")}
            path.write_text(json.dumps(bare | {"rope_theta": 10000.0}))
        made.append(folder)
    return made


def described(models, fields, last):
    """The file of a mixture."""
    fields = dict(fields)
    experts = [{"source_model": str(model), "positive_prompts": prompts} for model, prompts in zip(models, PROMPTS)]
    experts[0]["negative_prompts"] = ["nothing of the kind", "no"]
    experts[-1].update(last)
    shared = fields.pop("shared", False)
    made = {"base_model": str(models[0]), "experts": experts, **fields}
    if shared:
        made["shared_experts"] = [{"source_model": str(models[1]), "residual_scale": 0.1}]
        if fields.get("architecture") != "deepseek":
            made["shared_experts"][0]["positive_prompts"] = ["anything at all"]
    return made


def by_mergekit(text, folder, dtype):
    """mergekit's own, whose base runs in `dtype`."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained

    def as_typed(*args, **options):
        return loaded(*args, **{**options, "torch_dtype": dtype})
    router.AutoModelForCausalLM.from_pretrained = as_typed
    options = MergeOptions(random_seed=7, device="cpu")
    options.apply_global_options()
    moe.build(MoEMergeConfig.model_validate(yaml.safe_load(text)), str(folder), options, device="cpu")
    router.AutoModelForCausalLM.from_pretrained = loaded


def weights_of(folder, deepseek):
    """Tensors as transformers has them in the model. DeepSeek's class is no part of it."""
    if deepseek:
        return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return dict(model.state_dict())


def fields_of(folder, deepseek):
    if deepseek:
        written = json.loads((folder / "config.json").read_text())
        # What to_dict adds of every config, and what it leaves out.
        return {k: v for k, v in written.items() if k in FIELDS}
    fields = transformers.AutoConfig.from_pretrained(folder).to_dict()
    return {k: v for k, v in fields.items() if k not in ("_name_or_path", "transformers_version")}


FIELDS = ("architectures", "model_type", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "hidden_size",
          "first_k_dense_replace", "moe_layer_freq", "scoring_func", "norm_topk_prob", "moe_intermediate_size", "auto_map",
          "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "vocab_size")

WORK.mkdir(parents=True)
models = {}
for case, (kind, fields, last) in CASES.items():
    if kind not in models:
        models[kind] = make_models(kind)
    text = yaml.safe_dump(described(models[kind], fields, last), sort_keys=False)
    (WORK / f"{case}.yml").write_text(text)
    ours, theirs, own = (WORK / f"{case}-{name}" for name in ("ours", "theirs", "own"))
    deepseek = fields.get("architecture") == "deepseek"
    by_mergekit(text, theirs, torch.float32)
    atombank("merge", "moe", WORK / f"{case}.yml", "--seed", 7, "-o", ours)
    found, expected = fields_of(ours, deepseek), fields_of(theirs, deepseek)
    # Fields of the base's class that the mixture's doesn't have may be missing where they are off.
    differing = sorted(k for k in {*found, *expected} if found.get(k, False) != expected.get(k, False))
    check(f"{case}: config", not differing, ", ".join(f"{k}: {found.get(k)} for {expected.get(k)}" for k in differing) or f"{len(found)} fields")
    found, expected = weights_of(ours, deepseek), weights_of(theirs, deepseek)
    if deepseek:
        names = set(found)
    else:
        names = {n for n in found if n in expected}
    is_gate = lambda name: name.endswith(("mlp.gate.weight", "shared_expert_gate.weight"))
    same = [n for n in names if not is_gate(n) and torch.equal(found[n], expected[n]) and found[n].dtype == expected[n].dtype]
    others = [n for n in names if not is_gate(n)]
    check(f"{case}: weights", set(found) == set(expected) and len(same) == len(others) > 10,
          f"{len(same)} of {len(others)} have the same bits; {sorted(set(others) - set(same))[:2]}")
    mode = fields.get("gate_mode", "hidden")
    gates = [n for n in names if is_gate(n)]
    gap = max(float((found[n].float() - expected[n].float()).abs().max()) for n in gates)
    limit = {"hidden": HIDDEN, "cheap_embed": EMBEDDED}.get(mode, 0.0)
    if mode == "hidden" and fields.get("dtype") != "float32":
        limit = 2 ** -8                 # a value of bfloat16 may be rounded to either side
    check(f"{case}: gates", len(gates) >= 2 and gap <= limit, f"furthest {gap:.1e}")
    if mode == "hidden" and fields.get("dtype") == "float32":
        by_mergekit(text, own, torch.bfloat16)
        expected = weights_of(own, deepseek)
        gap = max(float((found[n] - expected[n]).abs().max()) for n in gates)
        check(f"{case}: gates of bfloat16", 0 < gap <= ITS_OWN, f"furthest {gap:.1e}")
for case in ("mixtral-hidden", "qwen2-hidden", "qwen3-hidden"):
    folder, gguf = WORK / f"{case}-ours", WORK / f"{case}.gguf"
    if case == "qwen2-hidden":
        # llama.cpp has no key for norm_topk_prob, which mergekit sets, and needs a head.
        atombank("merge", "moe", WORK / f"{case}.yml", "--seed", 7, "--type", "f32", "-o", gguf)
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | {"norm_topk_prob": False}))
    else:
        atombank("convert", folder, "--type", "f32", "-o", gguf)
    model, tokenizer = load_hf(folder), transformers.AutoTokenizer.from_pretrained(folder)
    vocab = model.config.vocab_size
    prompt, token = prompt_of(tokenizer, vocab)[:40], readable(tokenizer, vocab)
    logprobs, _ = llama_cpp_logprobs(llama_cpp(gguf, 128), prompt, token, 4, vocab)
    logits = hf_logits(model, prompt + [token] * 4)[len(prompt) - 1:-1]
    compare_logits(f"{case}: llama.cpp", logprobs, log_softmax(logits))
finish("moe")
