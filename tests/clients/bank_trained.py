"""Trains atom banks with atombank, and the same in torch with the reference of fixtures/routing.

    python bank_trained.py ATOMBANK_BINARY WORK_DIR

The losses of 50 steps have to be those of the reference under torch's AdamW, from the start that atombank made. Each
check prints a line; the last line counts them. Exit code 1 where one failed.
"""
import json
import sys

import torch
import transformers
from common import FIXTURES, WORK, atombank, check, finish, load_hf

sys.path.insert(0, str((FIXTURES / "routing").resolve()))
from queryable_lora import QueryableLora, eager  # noqa: E402

STEPS, LEARNING_RATE = 50, 3e-3
ROWS = [
    ("name the number", "one two", "three"),
    ("name the number", "three four", "five"),
    ("go on with the code", "return the value", "of self"),
    ("go on with the code", "def f(x):", "return x"),
    ("say the letters", "a", "b c d e f g"),
]
FIXED = ["atom_bank.instruction_center", "atom_bank.prior.bias"]  # not trained

# Name: base, settings of the adapter.
CASES = {
    "prompt": ("llama", dict(r=4, lora_alpha=8.0, target_modules=["q_proj", "v_proj"], num_atoms=4)),
    "token": ("qwen2", dict(r=3, lora_alpha=6.0, target_modules=["q_proj", "v_proj", "up_proj"], num_atoms=5, top_k=3, routing="token")),
    "rank-stabilized": ("llama", dict(r=4, lora_alpha=4.0, use_rslora=True, target_modules=["v_proj", "down_proj"], num_atoms=3,
                                      prior_strength=0.5, temperature=0.7)),
}


def run(base, settings, output, steps, learning_rate):
    """Trains with atombank and returns the losses of all steps."""
    config = WORK / f"{output.name}.toml"
    adapter = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    config.write_text(f"""kind = "bank"
base = "{base}"
output = "{output}"
[data]
train = "{WORK / 'rows.jsonl'}"
[adapter]
block_size = 1
key_dim = 4
descriptor_dim = 4
{adapter}
[training]
steps = {steps}
learning_rate = {learning_rate}
batch_size = {len(ROWS)}
warmup_steps = 0
schedule = "constant"
clip_norm = 0.0
""")
    atombank("train", config)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def tokens(folder):
    """Rows as the tokens of instruction, of both with the prompt, and of the completion, which carries loss."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    end = json.loads((folder / "config.json").read_text())["eos_token_id"]
    alone = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    return [(alone(i), tokenizer(f"{i}\n{p}\n")["input_ids"], alone(c) + [end]) for i, p, c in ROWS]


def loss_of(bank, rows):
    total, count = 0.0, 0
    for instruction, first, last in rows:
        e = bank.instruction_embedding(torch.tensor(instruction))
        logits = bank.forward(torch.tensor(first + last), len(first), e).logits[len(first) - 1:-1].float()
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(last), reduction="sum")
        count += len(last)
    return total / count


WORK.mkdir(parents=True)
with open(WORK / "rows.jsonl", "w") as file:
    for instruction, prompt, completion in ROWS:
        print(json.dumps({"instruction": instruction, "prompt": prompt, "completion": completion}), file=file)
for name, (base, settings) in CASES.items():
    folder, output, start = FIXTURES / "convert" / base / "model", WORK / name, WORK / f"{name}-start"
    losses = run(folder, settings, output, STEPS, LEARNING_RATE)
    # A rate of zero leaves the start as it is.
    run(folder, settings, start, 1, 0.0)
    model = eager(load_hf(folder))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    bank = QueryableLora.load(model, start)
    trained = [tensor.requires_grad_(True) for key, tensor in bank.t.items() if key not in FIXED]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    rows, expected = tokens(folder), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(bank, rows)
        loss.backward()
        optimizer.step()
        expected.append(float(loss.detach()))
    worst = max(abs(a - b) / b for a, b in zip(losses, expected))
    check(f"{name}: {STEPS} losses", len(losses) == STEPS and worst <= 1e-3 and losses[-1] < 0.9 * losses[0],
          f"from {losses[0]:.4f} to {losses[-1]:.4f}, {worst:.1e} off at most")
finish("bank_trained")
