"""One case: an input mutated by its number, the command run under limits, and what is wrong with how it went."""
import os
import random
import re
import resource
import select
import shutil
import signal
import time
from pathlib import Path

from mutation import files
from mutation.values import json_bytes, line_bytes, raw, toml_bytes

MEMORY, RESIDENT, SECONDS, LINE = 4 << 30, 1 << 30, 20, 2000
READERS = {"json": json_bytes, "safetensors": files.safetensors, "gguf": files.gguf, "bin": files.archive, "model": files.sentencepiece, "toml": toml_bytes,
           "txt": line_bytes, "jsonl": line_bytes, "md": line_bytes, "jinja": line_bytes, "dat": raw}
RUST = re.compile(r"\b(?:alloc|core|std|serde|serde_json|candle_core|safetensors|tokenizers|toml|anyhow)::|\b(?:Vec|Option|Result|HashMap|Box|Arc)<|\busize\b|\bisize\b|&str\b"
                  r"|\bSome\(|\bNone\b|expected (?:internally tagged |newtype |tuple |unit )?(?:struct|enum|variant) |variant index|borrowed string|ParseIntError|Utf8Error")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
PANIC = re.compile(r"panicked at ([^\s:]+:\d+)")


def pick_command(commands, total, rng):
    at = rng.random() * total
    for command in commands:
        at -= command.weight
        if at < 0:
            return command
    return commands[-1]


def mutate_options(rng, command, args):
    args = list(args)
    for _ in range(rng.choice([1, 1, 1, 2])):
        option = rng.choice(sorted(command.options))
        value = rng.choice(command.options[option])
        if option in args and option not in ("--set", "--prompt", "--describe", "--tensor-type"):
            at = args.index(option)
            del args[at:at + (1 if value is None else 2)]
        args += [option] if value is None else [f"{option}={value}"] if value.startswith("-") else [option, value]
    return args


def build(case, inputs, commands, seed, number):
    """Lays out the folder of a case; returns the command, its arguments and what was mutated."""
    rng = random.Random(f"{seed}:{number}")
    plain = seed == "plain"
    command = commands[number] if plain else pick_command(commands, build.total, rng)
    args, told = command.args, []
    slots = {}
    if plain:
        told.append("nothing")
    elif command.options and rng.random() < 0.12:
        args = mutate_options(rng, command, args)
        told.append("options")
    if not told or not plain and rng.random() < 0.1:
        for _ in range(rng.choice([1] * 8 + [2, 2, 3])):
            slot = rng.choice(command.mutable)
            source = inputs / command.inputs[slot]
            if source.is_dir():
                found = sorted(str(p.relative_to(source)) for p in source.rglob("*") if p.is_file() and p.name != command.skip)
                # The shards of a model count as one file.
                alike = {}
                for name in found:
                    alike.setdefault(re.sub(r"\d+", "", name), []).append(name)
                # Settings are small, and have the most to be found in them.
                kinds = sorted([*alike, *(kind for kind in alike if kind.endswith("config.json")), *(kind for kind in alike if kind == "config.json")])
                name = rng.choice(alike[rng.choice(kinds)])
            else:
                name = ""
            slots.setdefault(slot, []).append(name)
    case.mkdir()
    (case / "in").mkdir()
    (case / "out").mkdir()
    for slot, place in command.inputs.items():
        source, target = inputs / place, case / "in" / slot
        changed = slots.get(slot, [])
        if not changed:
            target.symlink_to(source)
            continue
        if source.is_dir():
            for path in sorted(source.rglob("*")):
                to = target / path.relative_to(source)
                to.parent.mkdir(parents=True, exist_ok=True)
                if path.is_file():
                    os.link(path, to)
        else:
            os.link(source, target)
        for name in changed:
            path = target / name if name else target
            if not path.exists():
                continue
            ending = path.name.rsplit(".", 1)[-1]
            old = path.read_bytes()
            path.unlink()
            what = rng.random()
            if name and what < 0.02:
                told.append(f"{slot}/{name} deleted")
                continue
            try:
                new = READERS.get(ending, raw)(rng, old)
            except Exception:  # mutated twice, it has lost its structure
                new = raw(rng, old)
            path.write_bytes(new)
            told.append(f"{slot}/{name} {len(old)} -> {len(new)} bytes")
    return command, [a for a in args], "; ".join(told)


def run(binary, args, case, environment):
    """(how it ended, stdout, stderr, resident bytes, seconds)"""
    here = os.getcwd()
    os.chdir(case)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, "../stdout", flags, 0o600),
                   (os.POSIX_SPAWN_OPEN, 2, "../stderr", flags, 0o600)]
        start = time.monotonic()
        pid = os.posix_spawn(binary, [binary, *args], environment, file_actions=actions)
    finally:
        os.chdir(here)
    descriptor = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    late = not poll.poll(SECONDS * 1000)
    if late:
        os.kill(pid, signal.SIGKILL)
    os.close(descriptor)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.monotonic() - start
    ended = "timeout" if late else f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    out, err = ((case.parent / name).read_bytes()[:3_000_000] for name in ("stdout", "stderr"))
    return ended, out, err, usage.ru_maxrss * 1024, seconds


def wrong(command, args, case, ended, err, resident, outside):
    """The kinds of what is wrong, each with what tells cases of it apart."""
    text, found = err.decode("utf-8", "replace"), []
    panic = PANIC.search(text)
    if panic:
        found.append(("panic", re.sub(r".*/(?=registry|library|src/)|index\.crates\.io-\w+/", "", panic.group(1))))
    elif ended == "timeout":
        found.append(("timeout", ""))
    elif isinstance(ended, str):
        found.append((ended, normal(text)))
    elif ended not in (0, 1, 2):
        found.append((f"exit {ended}", normal(text)))
    if resident > RESIDENT:
        found.append(("more than 1 GiB", ""))
    left = sorted(str(p.relative_to(case / "out")) for p in (case / "out").rglob("*") if not p.is_dir())
    hidden = [p for p in left if ".partial" in p or ".replaced" in p or Path(p).name.startswith(".")]
    if hidden or (left and ended != 0 and command.args[0] not in ("train", "generate")):
        found.append(("leftover", re.sub(r"\d+", "N", (hidden or left)[0])))
    extra = sorted(p.name for p in case.iterdir() if p.name not in ("in", "out", "home")) + sorted(outside)
    if extra:
        found.append(("written elsewhere", extra[0]))
    if ended == 0 and command.output and "--dry-run" not in args and "--help" not in args and not any((case / "out").iterdir()):
        found.append(("no output", ""))
    if ended in (1, 2) and not panic:
        rust = RUST.search(text)
        if rust:
            found.append(("Rust in a message", rust.group()))
        if not text.startswith("error: ") or (ended == 1 and text.count("\n") != 1):
            found.append(("not one line", normal(text[:400])))
        if max(map(len, text.split("\n"))) > LINE:
            found.append(("long message", normal(text[:300])))
        if CONTROL.search(text) or "\u202e" in text:
            found.append(("control characters", normal(text[:300])))
        if text.count("os error") > 1:
            found.append(("system error twice", normal(text)))
    return found


def normal(text):
    """A message without what differs from case to case."""
    text = re.sub(r"^error: [^\"]*?: ", "error: FILE: ", text)
    text = re.sub(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'', "Q", text)
    text = re.sub(r"(?:in|out)/[^\s:,|]+", "FILE", CONTROL.sub("?", text))
    return re.sub(r"-?\d[\d.e+]*", "N", re.sub(r"(\w)\1{20,}", r"\1..", text)).strip().replace("\n", " | ")[:160]


def keep(folder, case, binary, args, told, kinds, ended, err):
    """The case with its links followed, and how to run it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(case / "in", folder / "in")
    (folder / "out").mkdir()
    quoted = " ".join("'" + a.replace("'", "'\\''") + "'" if re.search(r"[^\w./=,-]", a) or not a else a for a in args)
    (folder / "command.sh").write_text(f"#!/bin/sh\n# mutated: {told}\ncd \"$(dirname \"$0\")\" && \"${{ATOMBANK:-{binary}}}\" {quoted}\n")
    (folder / "message.txt").write_bytes(f"ended: {ended}\nkinds: {kinds}\n".encode("utf-8", "replace") + err[:20000])


def limits():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
