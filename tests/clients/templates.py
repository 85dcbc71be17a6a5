"""Has transformers render chats with templates in the style of public model families, and compares texts, tokens and
masks of answers with those of `atombank train --preview`.

    templates.py ATOMBANK FOLDER

The templates are written anew from the documented formats of their families. Tokenizers are not theirs: the text of a
template does not depend on the tokenizer.
"""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
BINARY, WORK = sys.argv[1], Path(sys.argv[2])
TEMPLATES = sorted(Path("tests/clients/templates").glob("*.jinja"))
BASE = Path("fixtures/convert/llama/model")
TOOLS = [{"type": "function", "function": {
    "name": "price", "description": "item's price in €, 'net' <or> gross & tax",
    "parameters": {"type": "object", "properties": {
        "item": {"type": "string", "enum": ["pear", "plum"]},
        "tags": {"type": "array", "items": {"type": "string"}, "description": "Tags."},
        "share": {"type": "number", "default": 1.0}}, "required": ["item"]}}}]


def chat(*turns, **fields):
    return {"messages": [{"role": role, "content": content} for role, content in turns], **fields}


CHATS = [
    chat(("user", "Hi!"), ("assistant", "Hello, how can I help?")),
    chat(("system", "Answer in one word."), ("user", "Colour of snow?"), ("assistant", "white"),
         ("user", "and of coal?"), ("assistant", "black")),
    chat(("system", ""), ("user", " spaces \n and\n\nlines "), ("assistant", "\n kept ? \n")),
    chat(("user", "größer: 東京 \"quoted\" <b>&amp;</b>"), ("assistant", "naïve 'answer' {{ x }} {% y %}.")),
    chat(("user", "one?"), ("assistant", "<think>\nin one\n</think>\n\ntwo"), ("user", "and?"),
         ("assistant", "<think>\nin two\n</think>\n\nthree")),
    chat(("user", "a"), ("assistant", "b"), ("user", "not answered yet")),
    chat(("assistant", "I begin."), ("user", "ok"), ("assistant", "good")),
    {"tools": TOOLS, "messages": [
        {"role": "user", "content": "price of a pear?"},
        {"role": "assistant", "tool_calls": [{"id": "c123456789", "type": "function", "function": {
            "name": "price", "arguments": {"item": "pear <'s>", "share": 0.5, "tags": ["ü", "b"]}}}]},
        {"role": "tool", "tool_call_id": "c123456789", "name": "price", "content": "{\"price\": 0.5}"},
        {"role": "assistant", "content": "Half an euro."}]},
    {"messages": [{"role": "user", "content": "think"},
                  {"role": "assistant", "reasoning_content": "so it is", "content": "done"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "part one"}, {"type": "text", "text": "part two"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "in parts"}]}]},
]
passed = failed = 0


def check(name, good, detail=""):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    if not good:
        print(f"FAILED {name}: {detail}", flush=True)


def preview(folder, rows, *settings):
    """The rows as atombank makes them, or the line that refuses them."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    config = folder / "train.toml"
    config.write_text("\n".join([f"base = '{folder}'", f"output = '{folder}/run'", "[data]",
                                 f"train = '{file}'", *settings]))
    run = subprocess.run([BINARY, "train", config, "--preview", "99", "--json"], capture_output=True, text=True)
    return json.loads(run.stdout)["rows"] if run.returncode == 0 else run.stderr


def rendered(tokenizer, row, **options):
    """Text, tokens and mask of transformers; None where the template refuses the chat."""
    arguments = {"tools": row.get("tools"), **options}
    try:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False, **arguments)
    except Exception:
        return None
    out = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True,
                                        return_assistant_tokens_mask=True, **arguments)
    return text, out["input_ids"], out["assistant_masks"]


def first_difference(found, expected):
    at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
    return f"at {at}: {found[max(0, at - 30):at + 50]!r}, transformers: {expected[max(0, at - 30):at + 50]!r}"


def takes_parts(row, wanted):
    """Whether the template takes contents in parts, if there are any: others get the parts as one text here."""
    lists = [m["content"] for m in row["messages"] if isinstance(m.get("content"), list)]
    kept = wanted and all(part["text"] in wanted[0] for parts in lists for part in parts)
    return not lists or bool(kept and "[{'type'" not in wanted[0])


for path in TEMPLATES:
    name, text = path.stem, path.read_text()
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in BASE.iterdir():
        shutil.copy(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    (folder / "chat_template.jinja").write_text(text)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [rendered(tokenizer, row) for row in CHATS]
    good = [(row, wanted) for row, wanted in zip(CHATS, expected) if wanted and takes_parts(row, wanted)]
    found = preview(folder, [row for row, _ in good], "allow_empty = true", "max_length = 8192")
    if isinstance(found, str):
        check(name, False, found)
        continue
    check(f"{name} rows", len(found) == len(good) >= 2, f"{len(found)} of {len(good)} rows")
    for (row, wanted), ours in zip(good, found):
        which = f"{name} row {CHATS.index(row) + 1}"
        check(f"{which} text", ours["text"] == wanted[0], first_difference(ours["text"], wanted[0]))
        check(f"{which} ids", ours["ids"] == wanted[1], first_difference(ours["ids"], wanted[1]))
        # The first token has nothing before it to be predicted from.
        mask = [0, *wanted[2][1:]]
        check(f"{which} mask", ours["mask"] == mask, first_difference(ours["mask"], mask))
    # What the template refuses there is refused here.
    for row, wanted in zip(CHATS, expected):
        if wanted is None and takes_parts(row, wanted):
            line = preview(folder, [row], "allow_empty = true", "max_length = 8192")
            check(f"{name} refuses row {CHATS.index(row) + 1}", isinstance(line, str) and "line 1" in line, line)
    # Without marks, the last answer is what TRL takes for a completion: all tokens behind those of the prompt.
    bare = re.sub(r"(\{%-?) generation (-?%\})", r"\1 if true \2", text)
    bare = re.sub(r"(\{%-?) endgeneration (-?%\})", r"\1 endif \2", bare)
    (folder / "chat_template.jinja").write_text(bare)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row, _ in good:
        if row["messages"][-1]["role"] != "assistant" or len(row["messages"]) < 2:
            continue
        which = f"{name} row {CHATS.index(row) + 1} without marks"
        try:
            prompt = tokenizer.apply_chat_template(row["messages"][:-1], tools=row.get("tools"), tokenize=True,
                                                   add_generation_prompt=True, return_dict=True)["input_ids"]
        except Exception:
            continue
        whole = rendered(tokenizer, row)[1]
        ours = preview(folder, [row], "allow_empty = true", "loss = 'last'", "max_length = 8192")
        if whole[:len(prompt)] != prompt:
            # Refused, unless the tokens alone differ: then the token across the beginning belongs to the answer.
            before = rendered(tokenizer, {**row, "messages": row["messages"][:-1]}, add_generation_prompt=True)[0]
            if not rendered(tokenizer, row)[0].startswith(before):
                check(which, isinstance(ours, str) and "message" in ours, ours)
            continue
        mask = [int(i >= len(prompt)) for i in range(len(whole))]
        check(which, not isinstance(ours, str) and ours[0]["mask"] == mask, ours)

print(f"templates: {len(TEMPLATES)} templates, {passed} passed, {failed} failed")
sys.exit(failed > 0 or len(TEMPLATES) < 20)
