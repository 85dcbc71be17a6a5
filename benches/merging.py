"""Times merging a LoRA beside `cp` and beside PEFT: one table, in Markdown.

    python benches/merging.py ATOMBANK WORK_DIR --python INTERPRETER [--model FOLDER] [--runs 5] [--python-runs 2]
                              [--llama-cpp SOURCE_TREE --llama-quantize PROGRAM]

ATOMBANK and PROGRAM are release builds, WORK_DIR a folder with room for six times the model. INTERPRETER has torch,
transformers and peft. The model is WORK_DIR/model unless --model names another; where there is none, make_model.py
makes one. The LoRA has rank 16 on all linear layers, of random numbers. With SOURCE_TREE and PROGRAM the whole chain
to Q4_K_M is timed: PEFT's merge and save, convert_hf_to_gguf.py and llama-quantize one after the other, beside one
command.

Every round runs every command once on two threads, so that whatever else the machine does meets all of them; the
table gives the best round and the median. Every output is new, every input stands in the page cache.
"""
import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from conversion import REFERENCE
from quantization import timed

HERE = Path(__file__).resolve().parent
LAYERS = '["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]'

MAKE = f"""
import sys, torch, peft, transformers
torch.manual_seed(0)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules={LAYERS}))
for name, value in model.named_parameters():
    if "lora_" in name:
        value.data = torch.randn_like(value) * 0.02
model.save_pretrained(sys.argv[2])
"""

PEFT = """
import sys, torch, peft, transformers
torch.set_num_threads(2)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
peft.PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
transformers.AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[3])
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atombank", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--llama-quantize", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--python-runs", type=int, default=2)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    args.work.mkdir(parents=True, exist_ok=True)
    model, lora = args.model or args.work / "model", args.work / "lora"
    if not model.exists():
        subprocess.run([args.python, HERE / "make_model.py", model], check=True)
    if not lora.exists():
        subprocess.run([args.python, "-c", MAKE, model, lora], check=True)
    out, errors, runs = args.work / "out", args.work / "stderr", {}
    merge = [args.atombank.absolute(), "--quiet", "--threads", "2", "merge", model, lora]

    def run(name, command, wanted):
        if len(runs.setdefault(name, [])) < wanted:
            runs[name].append(timed(command, out, errors))
            print(name, runs[name][-1], file=sys.stderr, flush=True)

    peft_row, chain_row = "PEFT: merge_and_unload, save_pretrained", "PEFT, convert_hf_to_gguf.py, llama-quantize"
    copy_row, ours_row, one_row = "`cp` of the model", "atombank merge", "atombank merge --type Q4_K_M"
    for _ in range(args.runs):
        run(copy_row, ["sh", "-c", f'cp "{model}"/* "$0"', out], args.runs)
        run(ours_row, [*merge, "-o", out / "merged"], args.runs)
        run(one_row, [*merge, "-o", out / "x.gguf", "--type", "Q4_K_M", "--pre", "gpt-2"], args.python_runs + 1)
        if len(runs.get(peft_row, [])) == args.python_runs:
            continue
        run(peft_row, [args.python, "-c", PEFT, model, lora, out / "merged"], args.python_runs)
        if args.llama_cpp and args.llama_quantize:
            kept = args.work / "kept"
            shutil.rmtree(kept, ignore_errors=True)
            (out / "merged").rename(kept)
            steps = [runs[peft_row][-1]]
            command = [args.python, "-c", REFERENCE, args.llama_cpp, kept, "--outfile", out / "x.gguf", "--outtype", "bf16"]
            steps.append(timed(command, out, errors))
            (out / "x.gguf").rename(kept / "x.gguf")
            steps.append(timed([args.llama_quantize, kept / "x.gguf", out / "y.gguf", "Q4_K_M", "2"], out, errors))
            shutil.rmtree(kept)
            seconds, processor, peak = zip(*steps)
            runs.setdefault(chain_row, []).append((sum(seconds), sum(processor), max(peak)))
    best = {name: min(seconds for seconds, _, _ in rows) for name, rows in runs.items()}
    print("| | best | median | processor | RssAnon | to `cp` | faster |\n|---|---|---|---|---|---|---|")
    for name, than in [(copy_row, None), (peft_row, None), (ours_row, peft_row), (chain_row, None), (one_row, chain_row)]:
        if name not in runs:
            continue
        seconds, processor, peak = zip(*runs[name])
        faster = f"{best[than] / best[name]:.1f}x" if than in best else ""
        print(f"| {name} | {best[name]:.2f} s | {statistics.median(seconds):.2f} s | {min(processor):.2f} s | {max(peak):.0f} MiB "
              f"| {best[name] / best[copy_row]:.2f} | {faster} |")
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
