"""Times quantization beside llama-quantize, and the whole way from a folder: one table each, in Markdown.

    python benches/quantization.py ATOMBANK WORK_DIR --llama-quantize PROGRAM [--model FOLDER]
                                   [--llama-cpp SOURCE_TREE --python INTERPRETER] [--types Q4_K_M,Q6_K,..]

ATOMBANK and PROGRAM are release builds, WORK_DIR a folder with room for four times the model. The model is
WORK_DIR/model unless --model names another; where there is none, make_model.py makes one (needs numpy). With
SOURCE_TREE and INTERPRETER, HF to Q4_K_M in one command is timed beside convert_hf_to_gguf.py and llama-quantize one
after the other.

Every round runs every command once on two threads, so that whatever else the machine does meets all of them; the
tables give the best round and the median. Both tools' files are compared: they have to hold the same tensors.
"""
import argparse
import filecmp
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from conversion import REFERENCE
from measure import measure

HERE = Path(__file__).resolve().parent
TYPES = ["Q4_K_M", "Q5_K_M", "Q6_K", "Q2_K", "IQ4_XS", "Q8_0", "Q4_0"]


def timed(command, out, errors):
    """One run into a fresh folder: seconds, processor seconds, MiB."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    with open(errors, "w") as stderr:
        seconds, processor, peak, code = measure(list(map(str, command)), stderr=stderr)
    if code:
        sys.exit(f"{command}: exit {code}\n{errors.read_text()[-2000:]}")
    return seconds, processor, peak


def same_tensors(a, b):
    """Both files end in the same bytes: keys that differ, like names of files, stand before the tensors."""
    sizes = [path.stat().st_size for path in (a, b)]
    if sizes[0] == sizes[1] and filecmp.cmp(a, b, shallow=False):
        return True
    length = min(sizes) - (1 << 20)
    with open(a, "rb") as x, open(b, "rb") as y:
        x.seek(-length, os.SEEK_END)
        y.seek(-length, os.SEEK_END)
        while block := x.read(1 << 20):
            if block != y.read(1 << 20):
                return False
    return True


def row(name, runs, base=None):
    best = [min(run[0] for run in r) for r in ([runs] if base is None else [runs, base])]
    seconds, processor, peak = zip(*runs)
    ratio = f"{best[1] / best[0]:.1f}x" if base else ""
    return (f"| {name} | {best[0]:.2f} s | {statistics.median(seconds):.2f} s | {min(processor):.2f} s | {max(peak):.0f} MiB | {ratio} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atombank", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--llama-quantize", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--python", type=Path)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    tool, work = args.atombank.absolute(), args.work
    model = args.model or work / "model"
    work.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        subprocess.run([args.python or sys.executable, HERE / "make_model.py", model], check=True)
    gguf, out, errors = work / "bf16.gguf", work / "out", work / "stderr"
    convert = [tool, "--quiet", "--threads", "2", "convert", model, "--pre", "gpt-2"]
    subprocess.run([*convert, "-o", gguf, "--type", "bf16", "--overwrite"], check=True)
    ours, theirs = {}, {}
    for _ in range(args.runs):
        for kind in args.types.split(","):
            command = [tool, "--quiet", "--threads", "2", "quantize", gguf, "-o", out / "a.gguf", "--type", kind]
            ours.setdefault(kind, []).append(timed(command, out, errors))
            if args.llama_quantize:
                (out / "a.gguf").rename(work / "a.gguf")
                command = [args.llama_quantize, gguf, out / "b.gguf", kind, "2"]
                theirs.setdefault(kind, []).append(timed(command, out, errors))
                if not same_tensors(work / "a.gguf", out / "b.gguf"):
                    sys.exit(f"{kind}: the files differ")
            print(kind, ours[kind][-1], theirs.get(kind, [""])[-1], file=sys.stderr, flush=True)
    print("| | best | median | processor | RssAnon | faster |\n|---|---|---|---|---|---|")
    for kind, runs in ours.items():
        if kind in theirs:
            print(row(f"{kind}, llama-quantize", theirs[kind]))
        print(row(f"{kind}, atombank quantize", runs, theirs.get(kind)))
    one, chain = [], []
    for _ in range(args.runs):
        one.append(timed([*convert, "-o", out / "a.gguf", "--type", "Q4_K_M"], out, errors))
        if args.python and args.llama_cpp and args.llama_quantize:
            command = [args.python, "-c", REFERENCE, args.llama_cpp, model, "--outfile", out / "x.gguf", "--outtype", "bf16"]
            first = timed(command, out, errors)
            (out / "x.gguf").rename(work / "x.gguf")
            second = timed([args.llama_quantize, work / "x.gguf", out / "b.gguf", "Q4_K_M", "2"], out, errors)
            chain.append((first[0] + second[0], first[1] + second[1], max(first[2], second[2])))
            (work / "x.gguf").unlink()
    print()
    print("| | best | median | processor | RssAnon | faster |\n|---|---|---|---|---|---|")
    if chain:
        print(row("convert_hf_to_gguf.py, then llama-quantize", chain))
    print(row("atombank convert --type Q4_K_M", one, chain or None))
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
