"""Trains LoRAs of every variant with atombank, and the same with torch and PEFT.

    python adapters_trained.py ATOMBANK_BINARY WORK_DIR

The losses of all steps have to be those of PEFT's layers under torch's AdamW; PEFT has to load what atombank wrote, and
transformers what it merged, with the same logits. Each check prints a line; the last line counts them. Exit code 1 where
one failed.
"""
import json

import peft
import torch
import transformers
from common import FIXTURES, WORK, atombank, check, finish, gap, hf_logits, load_hf

STEPS, LEARNING_RATE = 50, 5e-3
ROWS = [("one two\n", "three"), ("return the value\n", "of self"), ("def f(x):\n", "return x"), ("a\n", "b c d e f g")]
ATTENTION = ["q_proj", "v_proj"]
LINEAR = ATTENTION + ["up_proj", "down_proj"]

# Name: base, settings of LoRA as PEFT has them.
CASES = {
    "plain": ("llama", dict(r=4, lora_alpha=8, target_modules=ATTENTION)),
    "rank-stabilized": ("llama", dict(r=4, lora_alpha=8, use_rslora=True, target_modules=LINEAR)),
    "patterns": ("llama", dict(r=4, lora_alpha=8, target_modules=LINEAR, rank_pattern={"layers.1.self_attn.q_proj": 2, "[qv]_proj": 3},
                               alpha_pattern={"up_proj": 3}, exclude_modules=["down_proj"], layers_to_transform=[1])),
    "dora": ("llama", dict(r=4, lora_alpha=8, use_dora=True, target_modules=LINEAR)),
    "dora-qwen2": ("qwen2", dict(r=4, lora_alpha=8, use_dora=True, use_rslora=True, target_modules=LINEAR)),
    "dora-conv1d": ("gpt2", dict(r=4, lora_alpha=8, use_dora=True, target_modules=["c_attn", "c_fc", "c_proj"])),
    "dora-fused": ("falcon", dict(r=4, lora_alpha=8, use_dora=True, target_modules=["query_key_value", "dense_h_to_4h"])),
    "pissa": ("llama", dict(r=4, lora_alpha=8, init_lora_weights="pissa", target_modules=LINEAR)),
    "pissa-rank-stabilized": ("llama", dict(r=4, lora_alpha=8, use_rslora=True, init_lora_weights="pissa", target_modules=ATTENTION)),
    "all-linear": ("llama", dict(r=4, lora_alpha=8, init_lora_weights="gaussian", target_modules="all-linear")),
}


def toml(value):
    """A value in TOML; JSON's is the same but for tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def run(base, settings, output, steps, learning_rate, **more):
    """Trains with atombank and returns the losses of all steps."""
    keys = {f"adapter.{key}": value for key, value in settings.items()}
    keys |= {"training.steps": steps, "training.learning_rate": learning_rate, **more}
    config = WORK / f"{output.name}.toml"
    config.write_text(f"""kind = "lora"
base = "{base}"
output = "{output}"
[data]
train = "{WORK / 'rows.jsonl'}"
[adapter]
prompt_template = "{{prompt}}"
[training]
batch_size = {len(ROWS)}
warmup_steps = 0
schedule = "constant"
clip_norm = 0.0
""")
    atombank("train", config, *[arg for key, value in keys.items() for arg in ("--set", f"{key}={toml(value)}")])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def tokens(folder):
    """Rows as the tokens of prompt and completion, which carries loss."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    end = json.loads((folder / "config.json").read_text())["eos_token_id"]
    rows = []
    for prompt, completion in ROWS:
        first = tokenizer(prompt)["input_ids"]
        rows.append((first, tokenizer(completion, add_special_tokens=False)["input_ids"] + [end]))
    return rows


def loss_of(model, rows):
    total, count = 0.0, 0
    for first, last in rows:
        logits = model(torch.tensor([first + last])).logits[0, len(first) - 1:-1].float()
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(last), reduction="sum")
        count += len(last)
    return total / count


def train_in_torch(model, rows):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, rows)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


WORK.mkdir(parents=True)
with open(WORK / "rows.jsonl", "w") as file:
    for prompt, completion in ROWS:
        print(json.dumps({"prompt": prompt, "completion": completion}), file=file)
for name, (base, settings) in CASES.items():
    folder, output = FIXTURES / "convert" / base / "model", WORK / name
    rows = tokens(folder)
    losses = run(folder, settings, output, STEPS, LEARNING_RATE)
    torch.manual_seed(0)
    if str(settings.get("init_lora_weights", "")).startswith("pissa"):
        # Its start has no random part, up to signs, which change no loss.
        model = peft.get_peft_model(load_hf(folder), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    else:
        # A rate of zero leaves the start as it is.
        start = WORK / f"{name}-start"
        run(folder, settings, start, 1, 0.0)
        model = peft.PeftModel.from_pretrained(load_hf(folder), start, is_trainable=True)
    expected = train_in_torch(model, rows)
    worst = max(abs(a - b) / b for a, b in zip(losses, expected))
    check(f"{name}: {STEPS} losses", len(losses) == STEPS and worst <= 1e-3 and losses[-1] < 0.9 * losses[0],
          f"from {losses[0]:.4f} to {losses[-1]:.4f}, {worst:.1e} off at most")
    prompt = rows[1][0] + rows[1][1] + rows[3][1]
    trained = hf_logits(model.eval(), prompt)
    loaded = hf_logits(peft.PeftModel.from_pretrained(load_hf(folder), output).eval(), prompt)
    atombank("merge", folder, output, "-o", WORK / f"{name}-merged", "--type", "f32")
    merged = hf_logits(load_hf(WORK / f"{name}-merged"), prompt)
    plain = hf_logits(load_hf(folder), prompt)
    check(f"{name}: merged", gap(merged, loaded) <= 1e-4, f"max |logit difference| to PEFT's {gap(merged, loaded):.1e}")
    check(f"{name}: trained", gap(loaded, trained) <= 0.02 * gap(plain, trained),
          f"max |logit difference| to torch's {gap(loaded, trained):.1e}, to the base's {gap(plain, trained):.1e}")
    if settings.get("use_dora") or "rank_pattern" in settings:
        packed = run(folder, settings, WORK / f"{name}-packed", STEPS, LEARNING_RATE, **{
            "training.packing": True, "training.batch_size": 1, "data.max_length": 200, "training.checkpoint_activations": True})
        worst = max(abs(a - b) / b for a, b in zip(packed, expected))
        check(f"{name}: packed", worst <= 1e-3, f"{worst:.1e} off at most")
finish("adapters_trained")
