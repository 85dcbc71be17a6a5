"""Training compared with torch and PEFT: the losses of fifty steps; TensorBoard reads the events of a run.

Every step takes all rows, so the order of rows doesn't matter. The base is a tiny Llama with random weights.
"""
import json
import shutil

import peft
import torch
import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common import FIXTURES, WORK, atombank, check, finish

STEPS, RATE, DECAY, ROWS = 50, 5e-4, 0.01, 10
BASE = FIXTURES / "convert/llama/model"
DATA = FIXTURES / "train/resume.jsonl"


def settings(name, **more):
    values = {"kind": "lora", "base": BASE, "output": WORK / name, "data.train": DATA, "data.eval": DATA,
              "adapter.prompt_template": "{prompt}", "adapter.r": 4, "adapter.lora_alpha": 8.0,
              "adapter.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
              "training.steps": STEPS, "training.batch_size": ROWS // 2, "training.gradient_accumulation": 2,
              "training.shuffle": False, "training.learning_rate": RATE, "training.weight_decay": DECAY,
              "training.warmup_steps": 5, "training.eval_every": 25, **more}
    file = WORK / f"{name}.toml"
    tables = {"": []}
    for key, value in values.items():
        table, _, last = key.rpartition(".")
        text = value if isinstance(value, (bool, int, float, list)) else str(value)
        tables.setdefault(table, []).append(f"{last} = {json.dumps(text)}")
    tops = tables.pop("")
    file.write_text("\n".join(tops + [line for table, lines in tables.items() for line in [f"[{table}]", *lines]]) + "\n")
    return file


def lines(name, field):
    text = (WORK / name / "metrics.jsonl").read_text()
    return [line[field] for line in map(json.loads, text.splitlines()) if field in line]


def rate_factor(step, schedule):
    """Of the step counted from 0: the warm-up, then the schedule down to 0."""
    if step < 5:
        return (step + 1) / 5
    done = (step - 5) / (STEPS - 5)
    return {"linear": 1 - done, "constant": 1.0}.get(schedule)


def torch_losses(start, schedule, plus):
    """PEFT trains the adapter in the folder `start`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    rows = []
    for row in map(json.loads, DATA.read_text().splitlines()):
        prompt = tokenizer(row["prompt"])["input_ids"]
        rows.append((prompt, tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [2]))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.tensor([(prompt + answer + [0] * width)[:width] for prompt, answer in rows])
    mask = torch.tensor([[int(t < len(prompt) + len(answer)) for t in range(width)] for prompt, answer in rows])
    labels = torch.tensor([[i if len(prompt) <= t < len(prompt) + len(answer) else -100 for t, i in enumerate(row)]
                           for (prompt, answer), row in zip(rows, ids.tolist())])
    base = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, start, is_trainable=True).eval()
    groups = [[p for n, p in model.named_parameters() if p.requires_grad and ("lora_B" in n) == b] for b in (False, True)]
    optimizer = torch.optim.AdamW([{"params": group, "lr": RATE} for group in groups], weight_decay=DECAY)
    losses = []
    for step in range(STEPS):
        for group, ratio in zip(optimizer.param_groups, (1, plus)):
            group["lr"] = RATE * ratio * rate_factor(step, schedule)
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group], 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def curves():
    for name, schedule, plus, more in [("lora", "constant", 1, {}), ("rslora", "linear", 1, {"adapter.use_rslora": True}),
                                       ("loraplus", "linear", 4, {"training.loraplus_lr_ratio": 4})]:
        more = {**more, "training.schedule": schedule}
        # A run that learns nothing writes the adapter that every run of this seed begins with.
        atombank("train", settings(f"{name}-start", **{**more, "training.steps": 1, "training.learning_rate": 0,
                                                       "training.eval_every": 0}), "--quiet")
        atombank("train", settings(name, **more), "--quiet")
        found, expected = lines(name, "loss"), torch_losses(WORK / f"{name}-start", schedule, plus)
        worst = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
        check(f"{name}, {schedule}", worst < 1e-3 and found[-1] < 0.7 * found[0],
              f"{len(found)} losses from {found[0]:.3f} to {found[-1]:.3f}, worst difference {worst:.1e}")


def events():
    file = settings("events", **{"training.metrics": ["jsonl", "tensorboard"], "training.checkpoint_every": 10,
                                 "training.schedule": "constant", "training.warmup_steps": 0})
    atombank("train", file, "--quiet", "--set", "training.steps=20")
    # A run that was killed after step 17 of 30: it goes on from the checkpoint of step 10.
    shutil.rmtree(WORK / "events/checkpoint-000020")
    atombank("train", file, "--quiet", "--resume", "--set", "training.steps=30")
    read = EventAccumulator(str(WORK / "events")).Reload()
    for tag, field in [("loss", "loss"), ("eval_loss", "eval_loss"), ("learning_rate", "learning_rate")]:
        found = [(event.step, event.value) for event in read.Scalars(tag)]
        expected = [(line["step"], line[field]) for line in
                    map(json.loads, (WORK / "events/metrics.jsonl").read_text().splitlines()) if field in line]
        same = len(found) == len(expected) and all(a[0] == b[0] and abs(a[1] - b[1]) <= 1e-6 * abs(b[1])
                                                   for a, b in zip(found, expected))
        check(f"TensorBoard reads {tag}", same, f"{len(found)} events, {len(expected)} lines")


WORK.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
curves()
events()
finish("training")
