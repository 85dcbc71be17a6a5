"""Times a training step of atombank and of PEFT with torch, in turn, in one run.

    python benches/training.py ATOMBANK_BINARY WORK_DIR [--layers 6] [--hidden 512] [--vocab 16000] [--rows 4]
        [--tokens 256] [--loss-from 0.0] [--steps 6] [--rounds 3] [--threads 2] [--kind lora|bank] [--resident]
        [--type f32|bf16|q4_k_m] [--checkpoint] [--no-peft]

Needs torch, transformers and peft, but for --no-peft numpy alone. The model is that of make_model.py, in f32 (--type: in
another type; then PEFT isn't run). A LoRA of rank 8 is trained on all linear layers; --loss-from 0.75 takes the loss of
the last quarter of each row alone. Each round runs both programs anew; the first two steps of each are left out. Printed
are the median of the tokens per second of all rounds and the largest peak of each, in MiB: of RSS, and for atombank of
RssAnon, which leaves the mapped file out. --checkpoint computes activations again.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM = 2


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("work", type=Path)
    for name, default in [("layers", 6), ("hidden", 512), ("vocab", 16000), ("rows", 4), ("tokens", 256), ("steps", 6), ("rounds", 3), ("threads", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--loss-from", type=float, default=0.0)
    parser.add_argument("--kind", default="lora")
    parser.add_argument("--resident", action="store_true")
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--type", default="f32")
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--peft-child", type=Path)
    return parser.parse_args()


def model(args):
    """The model's folder or GGUF."""
    folder = args.work / f"bf16-{args.layers}-{args.hidden}-{args.vocab}"
    if not folder.exists():
        here = Path(__file__).parent
        subprocess.run([sys.executable, here / "make_model.py", folder, "--layers", str(args.layers), "--hidden", str(args.hidden),
                        "--vocab", str(args.vocab), "--shards", "2"], check=True)
    if args.type == "bf16":
        return folder
    made = args.work / f"{args.type}-{folder.name}{'' if args.type == 'f32' else '.gguf'}"
    if not made.exists():
        subprocess.run([args.binary, "convert", folder, "-o", made, "--type", args.type, "--quiet"], check=True)
    return made


def atombank(args, base):
    """Tokens per second of each step, and the peak RSS."""
    out = args.work / "trained"
    subprocess.run(["rm", "-rf", out], check=True)
    # A letter with its space is a token here; the loss begins behind the prompt, and a row ends with one more token.
    prompt = max(1, int(args.tokens * args.loss_from))
    rows = []
    for i in range(args.rows):
        letters = ["abcdefghij"[(i * 7 + t * t + t // 3) % 10] + " " for t in range(args.tokens - 1)]
        rows.append({"instruction": "", "prompt": "".join(letters[:prompt]), "completion": "".join(letters[prompt:])})
    data = args.work / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = args.work / "train.toml"
    config.write_text(f'''base = "{base}"
output = "{out}"
kind = "{args.kind}"
[data]
train = "{data}"
max_length = 8192
[adapter]
r = 8
target_modules = {json.dumps(MODULES)}
prompt_template = "{{prompt}}"
[training]
steps = {args.steps + WARM}
batch_size = {args.rows}
resident = {str(args.resident).lower()}
''' + ("checkpoint_activations = true\n" if args.checkpoint else ""))
    env = {**os.environ, "RAYON_NUM_THREADS": str(args.threads), "CANDLE_NUM_THREADS": "1"}
    child = subprocess.Popen([args.binary, "train", config, "--quiet"], env=env)
    anonymous = 0
    while True:
        done, status, usage = os.wait4(child.pid, os.WNOHANG)
        if done:
            break
        lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        anonymous = max([anonymous, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
        time.sleep(0.02)
    if status:
        sys.exit("atombank failed")
    print(f"RssAnon {anonymous / 1024:.0f} MiB")
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if "tokens_per_second" in step]
    return [step["tokens_per_second"] for step in steps[WARM:]], usage.ru_maxrss / 1024, steps[0]["tokens"]


def peft_child(args, base):
    import peft
    import torch
    import transformers
    torch.set_num_threads(args.threads)
    base = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=16, target_modules=MODULES))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
    ids = torch.randint(0, 200, (args.rows, args.tokens))
    labels = ids.clone()
    labels[:, :int(args.tokens * args.loss_from)] = -100
    speeds = []
    for _ in range(args.steps + WARM):
        started = time.perf_counter()
        adapted(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        speeds.append(ids.numel() / (time.perf_counter() - started))
    print(json.dumps({"speeds": speeds[WARM:], "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main():
    args = arguments()
    if args.peft_child:
        return peft_child(args, args.peft_child)
    args.work.mkdir(parents=True, exist_ok=True)
    base = model(args)
    found = {"atombank": ([], []), "peft": ([], [])}
    for _ in range(args.rounds):
        speeds, rss, tokens = atombank(args, base)
        found["atombank"][0].extend(speeds)
        found["atombank"][1].append(rss)
        if args.type == "f32" and not args.no_peft:
            run = subprocess.run([sys.executable, *sys.argv, "--peft-child", base], capture_output=True, text=True, check=True)
            said = json.loads(run.stdout.splitlines()[-1])
            found["peft"][0].extend(said["speeds"])
            found["peft"][1].append(said["rss"])
    print(f"{tokens} tokens a step in {args.rows} rows")
    for name, (speeds, rss) in found.items():
        if speeds:
            print(f"{name:9} {statistics.median(speeds):8.0f} tokens/s   {max(rss):7.0f} MiB")
    if found["peft"][0]:
        ratio = [statistics.median(found["atombank"][0]) / statistics.median(found["peft"][0]), max(found["atombank"][1]) / max(found["peft"][1])]
        print(f"ratio     {ratio[0]:8.2f}            {ratio[1]:7.2f}")


main()
