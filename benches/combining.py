"""Times combining whole models beside mergekit: one table, in Markdown.

    python benches/combining.py ATOMBANK WORK_DIR --python INTERPRETER --mergekit CHECKOUT [--model FOLDER] [--runs 3]
                                [--python-runs 1] [--methods NAME..]

ATOMBANK is a release build, WORK_DIR a folder with room for six times the model. INTERPRETER has torch, transformers and
what mergekit needs. The model is WORK_DIR/model unless --model names another; where there is none, make_model.py makes
one. Two models are made of it by adding random numbers. Both programs compute in f32 and write bf16.

For each method, the programs take turns on two threads, so that whatever else the machine does meets both; the table
gives the best round, and the processor's time of that round. mergekit's time includes starting Python and importing it.
Every output is new, every input stands in the page cache.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from quantization import timed

HERE = Path(__file__).resolve().parent
METHODS = {
    "linear": {}, "slerp": {"t": 0.4}, "nuslerp": {}, "multislerp": {}, "task_arithmetic": {}, "ties": {"density": 0.5},
    "dare_ties": {"density": 0.5, "seed": 1}, "dare_linear": {"density": 0.5, "seed": 1}, "breadcrumbs": {"density": 0.5},
    "breadcrumbs_ties": {"density": 0.5}, "della": {"density": 0.5, "seed": 1}, "della_linear": {"density": 0.5, "seed": 1},
    "sce": {"select_topk": 0.5}, "model_stock": {}, "karcher": {}, "nearswap": {"t": 0.005}, "arcee_fusion": {"seed": 1},
    "ram": {"epsilon": 0.005}, "ramplus_tl": {"epsilon": 0.005}, "passthrough": {"scale": 0.9},
}
WEIGHTLESS = ["slerp", "sce", "model_stock", "karcher", "nearswap", "arcee_fusion", "ram", "ramplus_tl", "passthrough"]
OF_ONE = ["slerp", "nearswap", "arcee_fusion", "passthrough"]
BASELESS = ["linear", "karcher", "passthrough"]

MAKE = """
import pathlib, shutil, sys, torch
from safetensors.torch import load_file, save_file
torch.manual_seed(int(sys.argv[3]))
shutil.copytree(sys.argv[1], sys.argv[2], ignore=shutil.ignore_patterns("*.safetensors"))
for file in pathlib.Path(sys.argv[1]).glob("*.safetensors"):
    noisy = {name: (value + 0.01 * torch.randn(value.shape)).to(value.dtype) for name, value in load_file(file).items()}
    save_file(noisy, pathlib.Path(sys.argv[2]) / file.name, {"format": "pt"})
"""

MERGEKIT = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
torch.set_num_threads(2)
options = MergeOptions(random_seed=1, copy_tokenizer=True, write_model_card=False, quiet=True)
run_merge(MergeConfiguration.model_validate(json.loads(sys.argv[2])), sys.argv[3], options)
"""


def config(method, options, base, models):
    """mergekit's."""
    each = ({} if method in WEIGHTLESS else {"weight": 0.5}) | {name: options[name] for name in ["density"] if name in options}
    shared = {name: value for name, value in options.items() if name not in ["density", "seed"]}
    of = [{"model": str(model), "parameters": each} for model in models]
    return json.dumps({"merge_method": method, "models": of, "parameters": shared, "dtype": "float32", "out_dtype": "bfloat16",
                       **({} if method in BASELESS else {"base_model": str(base)})})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atombank", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--mergekit", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--python-runs", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    args.work.mkdir(parents=True, exist_ok=True)
    base, models = args.model or args.work / "model", [args.work / "one", args.work / "two"]
    if not base.exists():
        subprocess.run([args.python, HERE / "make_model.py", base], check=True)
    for seed, model in enumerate(models):
        if not model.exists():
            subprocess.run([args.python, "-c", MAKE, base, model, str(seed)], check=True)
    out, errors = args.work / "out", args.work / "stderr"
    columns = ["", "mergekit", "processor", "RssAnon", "atombank merge", "processor", "RssAnon", "faster", "less processor"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for method, options in METHODS.items():
        if args.methods and method not in args.methods:
            continue
        of = models[:1] if method in OF_ONE else models
        ours = [args.atombank.absolute(), "--quiet", "--threads", "2", "merge", base]
        ours += [model if method in WEIGHTLESS else f"{model}=0.5" for model in of]
        ours += ["-o", out / "merged", "--method", method, *([f"--{method}-updates"] if method in ["nuslerp", "multislerp"] else [])]
        for name, value in options.items():
            ours += [f"--{name.replace('_', '-')}", value]
        theirs = [args.python, "-c", MERGEKIT, args.mergekit, config(method, options, base, of), out / "merged"]
        runs = {}
        for i in range(args.runs):
            runs.setdefault("ours", []).append(timed(ours, out, errors))
            if i < args.python_runs:
                runs.setdefault("theirs", []).append(timed(theirs, out, errors))
        theirs, ours = [(*min(runs[of])[:2], max(run[2] for run in runs[of])) for of in ["theirs", "ours"]]
        row = [f"{seconds:.2f} s | {processor:.2f} s | {peak:.0f} MiB" for seconds, processor, peak in (theirs, ours)]
        print(f"| {method} | {' | '.join(row)} | {theirs[0] / ours[0]:.1f}x | {theirs[1] / ours[1]:.1f}x |", flush=True)
    shutil.rmtree(out)


if __name__ == "__main__":
    sys.exit(main())
