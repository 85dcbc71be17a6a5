"""Times conversions beside `cp` and beside the Python tools they replace: one table, in Markdown.

    python benches/conversion.py ATOMBANK WORK_DIR [--model FOLDER] [--llama-cpp SOURCE_TREE] [--python INTERPRETER]

ATOMBANK is the program (`cargo build --release`), WORK_DIR a folder with room for six times the model. The model
is WORK_DIR/model unless --model names another; where there is none, make_model.py makes one. INTERPRETER runs the
Python tools: it has numpy for the model, torch and safetensors for .bin files, and what convert_hf_to_gguf.py asks
for, which is SOURCE_TREE's. Rows of tools that are not given are left out. The script itself needs Python alone.

Each round runs every command once, so that whatever else the machine does meets all of them; the table gives the
best round and the median. Every output is new (nothing is overwritten), every input stands in the page cache, and
what earlier commands left unwritten is on the disk before a clock starts. `cp` returns before its bytes are on the
disk, and so does atombank where it writes something new; of both there is a second row that waits for the disk.
"""
import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from measure import measure

HERE = Path(__file__).resolve().parent

CP, SYNC = "`cp` of the shards", "`cp` of the shards, `sync` of each"
SYNCED = "HF to GGUF, `--type bf16 --sync`"
OURS, THEIRS = "HF to GGUF, `--type bf16`", "HF to GGUF, convert_hf_to_gguf.py"
OUR_BIN, THEIR_BIN = "PyTorch .bin to HF", "PyTorch .bin to safetensors, torch"

# The demo's tokenizer is none that llama.cpp knows by its hash: its pre-tokenizer is named here, for both converters.
REFERENCE = """
import runpy, sys
tree = sys.argv.pop(1)
sys.path[:0] = [tree, tree + "/gguf-py"]
sys.argv[0] = tree + "/convert_hf_to_gguf.py"
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# As the Hub's own conversion does it: each file is loaded as a whole and saved again.
TORCH = """
import pathlib, sys, torch, safetensors.torch
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.bin")):
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    safetensors.torch.save_file(tensors, pathlib.Path(sys.argv[2], file.stem + ".safetensors"), {"format": "pt"})
"""


def steps(args, model):
    """Name, number of runs and command of every row; `{out}` is a folder that is new for each run."""
    made = args.work / "made"
    tool, python = [str(args.atombank), "--quiet", "convert"], [str(args.python), "-c"]
    copy = f'cp "{model}"/*.safetensors "$0"'
    yield CP, args.runs, ["sh", "-c", copy, "{out}"]
    yield SYNC, args.runs, ["sh", "-c", copy + ' && sync "$0"/*', "{out}"]
    to_gguf = [*tool, str(model), "-o", "{out}/x.gguf", "--type", "bf16", "--pre", "gpt-2"]
    yield OURS, args.runs, to_gguf
    yield SYNCED, args.runs, [*to_gguf, "--sync"]
    if args.python and args.llama_cpp:
        command = [*python, REFERENCE, str(args.llama_cpp), str(model), "--outfile", "{out}/x.gguf", "--outtype", "bf16"]
        yield THEIRS, args.python_runs, command
    yield "GGUF to HF", args.runs, [*tool, str(made / "x.gguf"), "-o", "{out}/folder"]
    split = ["--type", "source", "--split-max-size", "100M"]
    yield "GGUF split, 100 MB each", args.runs, [*tool, str(made / "x.gguf"), "-o", "{out}/x.gguf", *split]
    first = min((made / "parts").glob("*.gguf"))
    yield "GGUF joined", args.runs, [*tool, str(first), "-o", "{out}/x.gguf", "--type", "source"]
    yield OUR_BIN, args.runs, [*tool, str(made / "bin"), "-o", "{out}/folder"]
    if args.python:
        yield THEIR_BIN, args.python_runs, [*python, TORCH, str(made / "bin"), "{out}"]


def prepare(args, model):
    """Makes the inputs that are conversions themselves."""
    made = args.work / "made"
    shutil.rmtree(made, ignore_errors=True)
    (made / "parts").mkdir(parents=True)
    tool, gguf = [args.atombank, "--quiet", "convert"], made / "x.gguf"
    subprocess.run([*tool, model, "-o", gguf, "--type", "bf16", "--pre", "gpt-2"], check=True)
    subprocess.run([*tool, gguf, "-o", made / "parts/x.gguf", "--type", "source", "--split-max-size", "100M"], check=True)
    # Files of the model's own size: torch holds one at a time.
    size = str(max(file.stat().st_size for file in model.glob("*.safetensors")))
    subprocess.run([*tool, model, "-o", made / "bin", "--to", "pytorch", "--shard-size", size], check=True)


def run(args, model, command):
    """One measured run into a fresh folder: seconds, processor seconds, MiB."""
    out, errors = args.work / "out", args.work / "stderr"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for folder in [model, args.work / "made"]:
        for file in folder.rglob("*"):
            if file.is_file():
                with open(file, "rb") as f:
                    while f.read(1 << 20):
                        pass
    os.sync()
    with open(errors, "w") as stderr:
        seconds, processor, peak, code = measure([part.replace("{out}", str(out)) for part in command], stderr=stderr)
    if code:
        sys.exit(f"{command[:4]}: exit {code}\n{errors.read_text()[-2000:]}")
    errors.unlink()
    shutil.rmtree(out)
    return seconds, processor, peak


def table(rows):
    """The rows in Markdown, with how each stands to both copies and to the Python tool for the same."""
    best = {name: min(seconds for seconds, _, _ in runs) for name, runs in rows.items()}
    theirs = {OURS: THEIRS, OUR_BIN: THEIR_BIN}
    yield "| | best | median | processor | RssAnon | to `cp` | to `cp`, `sync` | faster than Python |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, runs in rows.items():
        seconds, processor, peak = zip(*runs)
        python = f"{best[theirs[name]] / best[name]:.1f}x" if theirs.get(name) in best else ""
        yield (f"| {name} | {best[name]:.2f} s | {statistics.median(seconds):.2f} s | {min(processor):.2f} s | "
               f"{max(peak):.0f} MiB | {best[name] / best[CP]:.2f} | {best[name] / best[SYNC]:.2f} | {python} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atombank", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--python", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--python-runs", type=int, default=2)
    args = parser.parse_args()
    args.atombank = args.atombank.absolute()         # Path("./x") is "x", which would be looked for in $PATH
    model = args.model or args.work / "model"
    args.work.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        subprocess.run([args.python or sys.executable, HERE / "make_model.py", model], check=True)
    prepare(args, model)
    todo, rows = list(steps(args, model)), {}
    for i in range(args.runs):
        for name, runs, command in todo:
            if i < runs:
                rows.setdefault(name, []).append(run(args, model, command))
                print(f"{name}: " + "%.2f s, processor %.2f s, RssAnon %.0f MiB" % rows[name][-1], file=sys.stderr)
    shutil.rmtree(args.work / "made")
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    print(f"{size / 2**20:.0f} MiB of tensors, {args.runs} rounds ({args.python_runs} of Python's)\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
