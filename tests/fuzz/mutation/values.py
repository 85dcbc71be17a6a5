"""Hostile values, and their places in JSON, TOML, lines and raw bytes."""
import json
import re
import struct

INTS = [0, -1, 1, 2, 3, 7, 255, 65535, 65536, 2**20, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1,
        2**63, 2**64 - 1, 2**64, -2**31, -2**63, 10**40]
FLOATS = ["0.5", "-0.5", "1e308", "-1e308", "1e-320", "1e999", "-1e999", "1.5e9", "0.0", "-0.0", "1e-45", "3.4e38", "3.5e38"]
WORDS = ["", " ", "NaN", "null", "true", "0", "-1", "1e999", "../x", "../../../../etc/passwd", "/etc/passwd", "a/b", ".", "..", "\0", "a\0b",
         "\x1b[31mred\x07\r\n\tx", "größe", "\U0001f980", "(", "[a-z", "(?:a*)*b", "{prompt}", "F32", "F16", "U8", "I64", "q4_k", "LORA",
         "llama", "LlamaForCausalLM", "BertModel", "BPE", "Unigram", "WordPiece", "model.embed_tokens.weight", "model-00001-of-00002.safetensors",
         "%s%n", "\u202egnp", "x" * 300, "\ufeff", "<0x41>", "▁"]
LONG = "A" * (1 << 20)
RAW = ["NaN", "Infinity", "-", "01", "'x'", "\"\\ud800\"", "\"\\u0000\"", "tru", "", ",", "}", "]", "\"", "1.", "0x10",
       "[" * 100 + "]" * 100, "{\"a\":" * 100 + "1" + "}" * 100, "[" * 5000, "[" * 200000, "\"\xff\""]


def near(rng, text):
    """A number close to the one that is there."""
    try:
        value = int(text)
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            return str(rng.choice(INTS))
        return repr(rng.choice([-value, value * 2, value / 2, value + 1, value * 1e30, value * 1e-30, value * 1e300, 0.0]))
    return str(rng.choice([value + 1, value - 1, value * 2, value // 2, -value, value * 1000, value + 2**32, value * 2**20, value + 64, value + 0.5]))


def text(rng):
    word = LONG if rng.random() < 0.02 else rng.choice(WORDS)
    return json.dumps(word, ensure_ascii=rng.random() < 0.5)


def other(rng):
    """JSON of any type."""
    pick = rng.randrange(10)
    if pick < 3:
        return str(rng.choice(INTS))
    if pick < 4:
        return rng.choice(FLOATS)
    if pick < 6:
        return text(rng)
    if pick < 9:
        return rng.choice(["null", "true", "false", "[]", "{}", "[1]", "[0,0]", "[null]", "[\"\"]", "{\"a\":1}", "[[]]", "[-1]", "[1e999]", "[{}]"])
    return rng.choice(RAW)


def hostile(rng, old):
    """A JSON value in place of this text of one."""
    kind = old[:1]
    if rng.random() < 0.2:
        return other(rng)
    if kind == '"':
        return rng.choice([text(rng), text(rng), old[:-1] + "x\"", old[:1] + old[2:] if len(old) > 2 and old[1] != "\\" else "\"\"", old.upper()])
    if kind in "-0123456789":
        return rng.choice([near(rng, old), near(rng, old), str(rng.choice(INTS)), str(rng.choice(INTS)), rng.choice(FLOATS)])
    if old in ("true", "false"):
        return {"true": "false", "false": "true"}[old] if rng.random() < 0.5 else other(rng)
    if kind == "[":
        inner = old[1:-1].strip()
        return rng.choice(["[]", f"[{inner},{inner}]" if inner else "[0]", f"[{inner},{other(rng)}]" if inner else "[null]",
                           f"[{old}]", "[" + ",".join([other(rng)] * 100000) + "]" if rng.random() < 0.02 else "[0]", "{}"])
    if kind == "{":
        return rng.choice(["{}", "[]", "{\"\":0}", f"[{old}]", "null"])
    return other(rng)


SPACE = re.compile(r"[ \t\r\n]*")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.S)
SCALAR = re.compile(r"[^\s,\]}:]+")


class Places:
    """Where the values of a JSON text are: `groups` maps a shape of path to (start of member, start, end) of each."""

    def __init__(self, text):
        self.text = text
        self.groups = {}
        end = self.value(SPACE.match(text, 0).end(), 0, ())
        if SPACE.match(text, end).end() != len(text):
            raise ValueError("more than one value")

    def note(self, path, member, start, end):
        self.groups.setdefault(path, []).append((member, start, end))

    def value(self, at, member, path):
        text, start = self.text, at
        if text[at] in "{[":
            closing, members, at, index = ("}" if text[at] == "{" else "]"), text[at] == "{", at + 1, 0
            while True:
                at = SPACE.match(text, at).end()
                if text[at] == closing:
                    at += 1
                    break
                if text[at] == ",":
                    at = SPACE.match(text, at + 1).end()
                first, key = at, "*"
                if members:
                    string = STRING.match(text, at)
                    key = string.group()
                    # Names of which there are many, as in vocabularies and headers, make one group.
                    key = "*" if index > 40 or re.search(r"\d", key) else key
                    at = SPACE.match(text, SPACE.match(text, string.end()).end() + 1).end()
                at = self.value(at, first, (*path, key))
                index += 1
        else:
            match = STRING.match(text, at) or SCALAR.match(text, at)
            at = match.end()
        self.note(path, member, start, at)
        return at

    def mutate(self, rng):
        text = self.text
        member, start, end = rng.choice(self.groups[rng.choice(sorted(self.groups))])
        old, what = text[start:end], rng.random()
        if what < 0.75 or member == 0:
            return text[:start] + hostile(rng, old) + text[end:]
        if what < 0.87:  # deleted, with one of its commas
            after, before = SPACE.match(text, end).end(), text[:member].rstrip()
            if text[after:after + 1] == ",":
                return text[:member] + text[after + 1:]
            return (before[:-1] if before.endswith(",") else before) + text[end:]
        if what < 0.93:  # twice
            again = text[member:start] + (old if rng.random() < 0.5 else hostile(rng, old))
            return text[:end] + "," + again + text[end:]
        if start > member:  # under another name
            return text[:member] + globals()["text"](rng) + ":" + text[start:]
        other_group = rng.choice(self.groups[rng.choice(sorted(self.groups))])
        return text[:start] + text[other_group[1]:other_group[2]] + text[end:]


PLACES = {}


def json_bytes(rng, data):
    try:
        source = data.decode("utf-8")
        places = PLACES.get(data) if len(data) > 2000 else None
        if places is None:
            places = Places(source)
            if len(data) > 2000 and len(PLACES) < 100:
                PLACES[data] = places
        return places.mutate(rng).encode("utf-8", "surrogatepass")
    except (ValueError, IndexError, AttributeError, RecursionError):
        return raw(rng, data)


def toml_bytes(rng, data):
    lines = data.decode("utf-8", "replace").split("\n")
    some = [i for i, line in enumerate(lines) if "=" in line]
    if not some:
        return raw(rng, data)
    i = rng.choice(some)
    key, old = (part.strip() for part in lines[i].split("=", 1))
    what = rng.random()
    if what < 0.8:
        new = hostile(rng, old)
        lines[i] = f"{key} = {rng.choice(['nan', 'inf', '-inf']) if rng.random() < 0.08 else new}"
    elif what < 0.87:
        del lines[i]
    elif what < 0.93:
        lines.insert(i, lines[i])
    else:
        lines[i] = f"{rng.choice(['x', 'r', 'steps', chr(34) + 'a b' + chr(34), 'adapter.r'])} = {old}"
    return "\n".join(lines).encode("utf-8", "replace")


def line_bytes(rng, data):
    """Vocabularies, merges, texts, cards and rows of JSON."""
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    what = rng.randrange(8)
    if what < 3 and lines[i][:1] == b"{":
        lines[i] = json_bytes(rng, lines[i])
    elif what < 3 or what == 7:
        word = rng.choice([w.encode() for w in WORDS] + [b"\xff\xfe", b"\xf0\x9f", LONG.encode(), b"[" * 100000, b"a: &a [*a, *a]", b"---"])
        lines[i] = rng.choice([word, lines[i] + word, word + lines[i]])
    elif what == 3:
        del lines[i]
    elif what == 4:
        lines.insert(i, rng.choice(lines))
    elif what == 5:
        lines[i] = lines[i][: rng.randrange(len(lines[i]) + 1)]
    else:
        return raw(rng, data)
    return b"\n".join(lines)


def raw(rng, data):
    """Bytes by themselves: numbers replaced, cut, joined."""
    if not data:
        return rng.choice([b"\0", b"{}", b"GGUF"])
    what = rng.randrange(12)
    at = rng.randrange(min(len(data), rng.choice([16, 256, 4096, len(data)])))
    if what < 5:
        code = rng.choice("bhiq")
        size = struct.calcsize(code)
        bits = 8 * size
        number = rng.choice(INTS) & (2**bits - 1)
        return data[:at] + number.to_bytes(size, "little") + data[at + size:]
    if what < 6:
        return data[:at] + struct.pack("<f", rng.choice([float("nan"), float("inf"), -1.0, 1e38, 1e-45])) + data[at + 4:]
    if what < 8:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1:]
    if what < 10:
        return data[: rng.choice([at, len(data) - 1, len(data) // 2, rng.randrange(len(data))])]
    if what < 11:
        return data + rng.choice([b"\0", data, bytes(64), b"\xff" * 8])
    end = min(len(data), at + rng.choice([1, 4, 8, 64]))
    return rng.choice([data[:at] + data[end:], data[:end] + data[at:end] + data[end:], b""])
