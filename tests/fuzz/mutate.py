"""A seeded, structure-aware mutation run over every reader and command of the program.

    python3 tests/fuzz/mutate.py --binary target/release/atombank --count 100000 --seed 1 --out DIR [--jobs N]
    python3 tests/fuzz/mutate.py --binary target/release/atombank --out DIR --only 1:4711

Python's standard library is enough. Each input is a fixture with a value or two changed (or a command line with a
number changed), by its seed and number alone. It runs under limits of memory and time; README.md lists the rules. Cases
with a finding are kept in DIR/findings/SEED-NUMBER, three of a kind. The exit code is 1 if there is one.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.dont_write_bytecode = True
from mutation import running  # noqa: E402
from mutation.commands import all_commands  # noqa: E402
from mutation.inputs import Inputs  # noqa: E402

CHUNK, KEPT = 100, 3
STATE = {}


def start(binary, inputs, out, scratch, threads):
    STATE.update(binary=binary, inputs=Path(inputs), out=Path(out), commands=all_commands(), kept=Counter(), threads=threads)
    running.build.total = sum(command.weight for command in STATE["commands"])
    STATE["root"] = Path(tempfile.mkdtemp(prefix="worker-", dir=scratch))
    (STATE["root"] / "home").mkdir()
    root = STATE["root"]
    STATE["environment"] = {"PATH": "/usr/bin:/bin", "HOME": str(root / "home"), "TMPDIR": str(root / "home"), "LC_ALL": "C.UTF-8", "HF_HUB_OFFLINE": "1",
                            "RAYON_NUM_THREADS": threads, "CANDLE_NUM_THREADS": threads, "RUST_BACKTRACE": "0"}
    running.limits()


def one(seed, number, always=False):
    root = STATE["root"]
    case = root / "case"
    command, args, told = running.build(case, STATE["inputs"], STATE["commands"], seed, number)
    args = [*args, "--quiet", *([] if any(a.startswith("--threads") for a in args) else ["--threads", STATE["threads"]])]
    # A text with a NUL can't be an argument.
    args = [a.replace("\0", "") for a in args]
    ended, out, err, resident, seconds = running.run(STATE["binary"], args, case, STATE["environment"])
    outside = {p.name for p in root.iterdir()} - {"case", "home", "stdout", "stderr"} | {f"home/{p.name}" for p in (root / "home").iterdir()}
    found = running.wrong(command, args, case, ended, err, resident, outside)
    result = {"number": number, "command": command.name, "group": command.group, "ended": ended, "seconds": seconds, "resident": resident, "found": found}
    if found or always:
        result.update(args=args, told=told, message=err[:2000].decode("utf-8", "replace"), stdout=out[:2000].decode("utf-8", "replace"))
        keys = [(command.args[0], *kind) for kind in found]
        if always or any(STATE["kept"][key] < KEPT for key in keys):
            STATE["kept"].update(keys)
            running.keep(STATE["out"] / "findings" / f"{seed}-{number}", case, STATE["binary"], args, told, found, ended, err)
    shutil.rmtree(case)
    for name in outside:
        path = root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return result


def chunk(seed, numbers):
    return [one(seed, number) for number in numbers]


def table(results, groups, seed, out, seconds):
    """What ran, how it ended, and what was found."""
    lines = [f"{'':34} inputs   exit 0   exit 1   exit 2    other  findings"]
    rows = {}
    for command, ended, found in results:
        row = rows.setdefault(command, Counter())
        row[ended if ended in (0, 1, 2) else "other"] += 1
        row["all"] += 1
        row["found"] += found
    total = sum(rows.values(), Counter())
    for name, row in [*sorted(rows.items()), ("all", total)]:
        lines.append(f"{name:34} {row['all']:6} {row[0]:8} {row[1]:8} {row[2]:8} {row['other']:8} {row['found']:9}")
    lines.append("")
    for (command, kind, detail), (count, first) in sorted(groups.items(), key=lambda group: (group[0][1], -group[1][0])):
        lines.append(f"{count:6}  {command}: {kind}: {detail}")
        lines.append(f"        --only {seed}:{first['number']}  [{first['told'][:100]}]  {first['message'][:160]!r}")
    lines.append(f"{total['all']} inputs, {total['found']} with a finding, {len(groups)} kinds, {seconds:.0f} s, {total['all'] / max(seconds, 1e-9):.0f} a second")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--start", type=int, default=0, help="the first number")
    parser.add_argument("--out", help="the folder of the run; a fresh temporary one unless given")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", default="2", help="threads of each command")
    parser.add_argument("--plain", action="store_true", help="run every command once on what isn't mutated, and list those that fail")
    parser.add_argument("--only", metavar="SEED:NUMBER", help="one input, its command and its messages")
    options = parser.parse_args()
    binary = str(Path(options.binary).resolve(strict=True))
    out = Path(options.out or tempfile.mkdtemp(prefix="atombank-mutations-")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2 << 30 else out
    scratch = Path(tempfile.mkdtemp(prefix="atombank-mutations-", dir=memory))
    try:
        return campaign(options, binary, out, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def campaign(options, binary, out, scratch):
    inputs = Inputs(Path(__file__).resolve().parents[2] / "fixtures", scratch / "inputs", binary)
    inputs.make()
    if inputs.failed:
        print("these inputs could not be made:", *inputs.failed, sep="\n  ")
        return 2
    missing = [f"{c.name}: {place}" for c in all_commands() for place in c.inputs.values() if not inputs.path(place).exists()]
    if missing:
        print("these inputs are missing:", *missing, sep="\n  ")
        return 2
    before = inputs.snapshot()
    begin = (binary, str(inputs.folder), str(out), str(scratch), options.threads)
    if options.only:
        seed, number = options.only.rsplit(":", 1)
        start(*begin)
        result = one(seed, int(number), always=True)
        print(json.dumps(result, indent=1, ensure_ascii=True))
        print(f"kept in {out}/findings/{seed}-{number}: command.sh runs it")
        return 1 if result["found"] else 0
    if options.plain:
        start(*begin)
        plain = [one("plain", number, always=True) for number in range(len(STATE["commands"]))]
        for result in plain:
            if result["ended"] != 0:
                print(f"{result['command']}: {result['ended']}: {result['message'].strip()[:300]}")
        print(f"{len(plain)} commands, {sum(r['ended'] == 0 for r in plain)} exit 0")
        return 0
    results, groups, slowest = [], {}, []
    began = last = time.monotonic()
    numbers = range(options.start, options.start + options.count)
    with ProcessPoolExecutor(options.jobs, initializer=start, initargs=begin) as pool, open(out / "findings.jsonl", "w") as log:
        chunks = [pool.submit(chunk, options.seed, numbers[i:i + CHUNK]) for i in range(0, len(numbers), CHUNK)]
        for future in chunks:
            for result in future.result():
                results.append((result["group"], result["ended"], bool(result["found"])))
                slowest = sorted([*slowest, (result["seconds"], result["number"], result["command"])], reverse=True)[:5]
                for kind, detail in result["found"]:
                    key = (result["command"].split()[0], kind, detail)
                    groups[key] = (groups.get(key, (0, None))[0] + 1, groups.get(key, (0, result))[1])
                if result["found"]:
                    log.write(json.dumps(result) + "\n")
            if time.monotonic() - last > 30:
                last = time.monotonic()
                print(f"{len(results)} of {options.count}, {len(groups)} kinds, {len(results) / (last - began):.0f} a second", file=sys.stderr, flush=True)
                log.flush()
                (out / "summary.txt").write_text(table(results, groups, options.seed, out, last - began) + "\n")
    text = table(results, groups, options.seed, out, time.monotonic() - began)
    text += "\nslowest: " + ", ".join(f"{seconds:.1f} s {options.seed}:{number} {command}" for seconds, number, command in slowest)
    changed = before != inputs.snapshot()
    if changed:
        text += "\nan input of another case was changed"
    (out / "summary.txt").write_text(text + "\n")
    print(text)
    return 1 if groups or changed else 0


if __name__ == "__main__":
    sys.exit(main())
