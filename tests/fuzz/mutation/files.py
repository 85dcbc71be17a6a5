"""The structures of binary files, changed in one place: safetensors, GGUF, zips with pickles, SentencePiece."""
import io
import json
import pickletools
import re
import struct
import zipfile

from mutation.values import INTS, LONG, WORDS, json_bytes, raw

DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "E8M0", "", "f32"]
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
         "F8_E4M3": 1, "F8_E5M2": 1}
BAD_FLOATS = [float("nan"), float("inf"), float("-inf"), 1e38, -1e38, 3.4e38, 1e-45, 0.0, 1e30]


def bad_value(rng, dtype):
    value = rng.choice(BAD_FLOATS)
    if dtype == "F64":
        return struct.pack("<d", rng.choice([*BAD_FLOATS, 1e300]))
    if dtype == "F16":
        return struct.pack("<H", rng.choice([0x7E00, 0x7C00, 0xFC00, 0x7BFF, 1]))
    if dtype == "BF16":
        return struct.pack("<f", value)[2:]
    if dtype == "F32":
        return struct.pack("<f", value)
    return rng.randbytes(max(1, SIZES.get(dtype, 1)))


def join_safetensors(head, data):
    head = head + b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


def safetensors(rng, file):
    try:
        size = struct.unpack("<Q", file[:8])[0]
        head, data = file[8:8 + size], bytearray(file[8 + size:])
        header = json.loads(head)
    except (struct.error, ValueError):
        return raw(rng, file)
    what = rng.random()
    if what < 0.12:
        return raw(rng, file)
    if what < 0.45:
        return join_safetensors(json_bytes(rng, head), bytes(data))
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return raw(rng, file)
    # What follows stays a file of the format; only its meaning is odd.
    for name in rng.sample(names, min(len(names), rng.choice([1, 1, 1, 2, len(names)]))):
        info = header[name]
        start, end = info["data_offsets"]
        kind = what if what < 0.9 else rng.uniform(0.45, 0.9)
        if kind < 0.6:  # a value
            width = SIZES.get(info["dtype"], 1)
            for at in ([start] if rng.random() < 0.5 else [start + width * rng.randrange(max(1, (end - start) // width))]):
                value = bad_value(rng, info["dtype"])
                if at + len(value) <= end:
                    data[at:at + len(value)] = value
        elif kind < 0.7:  # another type of the same width
            same = [d for d in SIZES if SIZES[d] == SIZES.get(info["dtype"]) and d != info["dtype"]]
            if same:
                info["dtype"] = rng.choice(same)
        elif kind < 0.8:  # another shape of as many elements, or none
            shape, total = info["shape"], 1
            for dim in shape:
                total *= dim
            info["shape"] = rng.choice([[total], shape[::-1], [1, *shape], [*shape, 1], [total, 1], [1, total], [1] * 9 + shape])
            if rng.random() < 0.2:
                info["shape"], info["data_offsets"] = rng.choice([[0], [0, *shape], [*shape[:-1], 0], [0, 2**40], []]), [start, start]
                if info["shape"] == []:
                    info["data_offsets"] = [start, start + SIZES.get(info["dtype"], 1)]
        elif kind < 0.85:  # another name
            new = rng.choice([rng.choice(names), name + "x", rng.choice(WORDS), LONG, name.replace("0", "1"), name.replace("0", str(2**31)),
                              name.replace("lora_A", "lora_B"), name.replace(".weight", ".bias"), re.sub(r"\.\d+\.", ".99999999999999999999.", name)])
            header = {(new if key == name else key): value for key, value in header.items()}
        else:
            header.pop(name, None)
        if rng.random() < 0.5:
            break
    # Rows that nobody names are refused: laid out anew.
    out, data_out = {}, b""
    for key, info in header.items():
        if key != "__metadata__":
            start, end = info["data_offsets"]
            part = bytes(data[start:end])
            info = {**info, "data_offsets": [len(data_out), len(data_out) + len(part)]}
            data_out += part
        out[key] = info
    return join_safetensors(json.dumps(out, ensure_ascii=False).encode("utf-8", "surrogatepass"), data_out)


WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Gguf:
    """The pieces of a GGUF file: keys as (name, type, value's bytes), tensors as (name, dims, type, offset)."""

    def __init__(self, data):
        self.data, self.at = data, 4
        self.order = "<" if data[4] else ">"
        self.version, self.tensor_count, self.key_count = self.take("IQQ")
        self.keys, self.tensors = [], []
        for _ in range(self.key_count):
            name, kind = self.string(), self.take("I")[0]
            start = self.at
            self.skip(kind)
            self.keys.append([name, kind, data[start:self.at]])
        for _ in range(self.tensor_count):
            name, count = self.string(), self.take("I")[0]
            dims = list(self.take(f"{count}Q"))
            self.tensors.append([name, dims, *self.take("IQ")])
        alignment = next((struct.unpack(self.order + "I", v)[0] for k, t, v in self.keys if k == b"general.alignment" and t == 4), 32)
        self.values = data[self.at + -self.at % alignment:] if self.tensors else b""
        self.alignment = alignment

    def take(self, kinds):
        values = struct.unpack_from(self.order + kinds, self.data, self.at)
        self.at += struct.calcsize(self.order + kinds)
        return values

    def string(self):
        size = self.take("Q")[0]
        self.at += size
        return self.data[self.at - size:self.at]

    def skip(self, kind):
        if kind == 8:
            self.string()
        elif kind == 9:
            inner, count = self.take("IQ")
            if inner in WIDTHS:
                self.at += WIDTHS[inner] * count
            else:
                for _ in range(count):
                    self.skip(inner)
        else:
            self.at += WIDTHS[kind]

    def pack(self, kinds, *values):
        return struct.pack(self.order + kinds, *values)

    def text(self, value):
        return self.pack("Q", len(value)) + value

    def bytes(self):
        out = [b"GGUF", self.pack("IQQ", self.version, self.tensor_count, self.key_count)]
        for name, kind, value in self.keys:
            out += [self.text(name), self.pack("I", kind), value]
        for name, dims, kind, offset in self.tensors:
            out += [self.text(name), self.pack("I", len(dims)), self.pack(f"{len(dims)}Q", *(d % 2**64 for d in dims)), self.pack("IQ", kind, offset % 2**64)]
        head = b"".join(out)
        return head + bytes(-len(head) % self.alignment) + self.values


def gguf_scalar(rng, file, kind):
    if kind == 8:
        word = LONG if rng.random() < 0.03 else rng.choice(WORDS)
        return file.text(rng.choice([word.encode(), word.encode(), b"\xff\x00"]))
    if kind == 6:
        return file.pack("f", rng.choice([*BAD_FLOATS, -1.0, 1e-30]))
    if kind == 12:
        return file.pack("d", rng.choice([*BAD_FLOATS, 1e308]))
    width = WIDTHS.get(kind, 4)
    return (rng.choice(INTS) % 2 ** (8 * width)).to_bytes(width, "little" if file.order == "<" else "big")


def gguf_key(rng, file):
    i = rng.randrange(len(file.keys))
    name, kind, value = file.keys[i]
    what = rng.random()
    if what < 0.55 and kind != 9:
        if rng.random() < 0.4 and kind in (4, 5, 10, 11):
            number = int.from_bytes(value, "little" if file.order == "<" else "big")
            number = rng.choice([number + 1, number - 1, number * 2, number // 2, number * 1000]) % 2 ** (8 * len(value))
            file.keys[i][2] = number.to_bytes(len(value), "little" if file.order == "<" else "big")
        else:
            file.keys[i][2] = gguf_scalar(rng, file, kind)
    elif what < 0.6 and kind != 9:
        kind = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12])
        file.keys[i][1:] = [kind, gguf_scalar(rng, file, kind)]
    elif what < 0.72 and kind == 9:
        inner, count = struct.unpack_from(file.order + "IQ", value)
        change = rng.randrange(5)
        if change == 0:
            file.keys[i][2] = file.pack("IQ", inner, rng.choice([count + 1, count - 1, 2**31, 2**62, 2**64 - 1, 0]) % 2**64) + value[12:]
        elif change == 1:
            file.keys[i][2] = file.pack("IQ", rng.choice([0, 4, 5, 6, 8, 9, 12, 13, 99]), count) + value[12:]
        elif change == 2 and inner in WIDTHS:
            body, width = value[12:], WIDTHS[inner]
            at = width * rng.randrange(max(count, 1))
            file.keys[i][2] = value[:12] + body[:at] + gguf_scalar(rng, file, inner) + body[at + width:]
        elif change == 3 and inner in WIDTHS:
            fewer = rng.choice([0, 1, count // 2, max(0, count - 1)])
            file.keys[i][2] = file.pack("IQ", inner, fewer) + value[12:12 + WIDTHS[inner] * fewer]
        elif inner == 8:
            at, words = 12, []
            for _ in range(count):
                size = struct.unpack_from(file.order + "Q", value, at)[0]
                words.append(value[at + 8:at + 8 + size])
                at += 8 + size
            for _ in range(rng.choice([1, 1, 3])):
                if words:
                    words[rng.randrange(len(words))] = rng.choice([rng.choice(WORDS).encode(), rng.choice(words), b"\xff", b"", LONG.encode() if rng.random() < 0.1 else b"a b"])
            if rng.random() < 0.2:
                words = words[:-1]
            file.keys[i][2] = file.pack("IQ", 8, len(words)) + b"".join(file.text(w) for w in words)
        else:
            file.keys[i][2] = raw(rng, value)
    elif what < 0.85:
        del file.keys[i]
        file.key_count -= 1
    elif what < 0.92:
        file.keys.append([name, *rng.choice(file.keys)[1:]] if rng.random() < 0.5 else [rng.choice(WORDS).encode(), kind, value])
        file.key_count += 1
    else:
        file.keys[i][0] = rng.choice([rng.choice(WORDS).encode(), rng.choice(file.keys)[0], name + b"x", LONG.encode() if rng.random() < 0.1 else name[:-1]])


def gguf_tensor(rng, file):
    i = rng.randrange(len(file.tensors))
    tensor = file.tensors[i]
    name, dims, kind, offset = tensor
    what = rng.randrange(12)
    if what < 2:
        tensor[0] = rng.choice([rng.choice(file.tensors)[0], name + b"x", rng.choice(WORDS).encode(), name.replace(b"0", b"1"),
                                re.sub(rb"\.\d+\.", b".4294967296.", name), name.replace(b".weight", b".bias"), LONG.encode() if rng.random() < 0.1 else b""])
    elif what < 5:
        j = rng.randrange(len(dims)) if dims else 0
        if dims:
            dims[j] = rng.choice([0, 1, dims[j] + 1, dims[j] - 1, dims[j] * 2, dims[j] // 2, 2**31, 2**32, 2**62, 2**63, 2**64 - 1])
    elif what < 6:
        tensor[1] = rng.choice([dims[::-1], [], [1, *dims], [*dims, 1], [1] * 5, [0] * 4, dims[:1], dims * 2])
    elif what < 8:
        tensor[2] = rng.choice([*range(43), 2**31, 2**32 - 1])
    elif what < 9:
        tensor[3] = rng.choice([offset + 1, offset + 32, offset - 32, 0, 2**31, 2**63, 2**64 - 32, rng.choice(file.tensors)[3]])
    elif what < 10:
        del file.tensors[i]
        file.tensor_count -= 1
    elif what < 11:
        file.tensors.append(list(rng.choice(file.tensors)))
        file.tensor_count += 1
    else:
        at = offset + (2 * rng.randrange(8) if rng.random() < 0.5 else rng.randrange(64))
        bad = bad_value(rng, {0: "F32", 1: "F16", 30: "BF16"}.get(kind, "F16"))
        if at + len(bad) <= len(file.values):
            file.values = file.values[:at] + bad + file.values[at + len(bad):]


def gguf(rng, data):
    try:
        file = Gguf(data)
    except (struct.error, KeyError, IndexError):
        return raw(rng, data)
    what = rng.random()
    if what < 0.1:
        return raw(rng, data)
    if what < 0.55 and file.keys:
        gguf_key(rng, file)
    elif what < 0.9 and file.tensors:
        gguf_tensor(rng, file)
    elif what < 0.93:
        file.version = rng.choice([0, 1, 2, 3, 4, 2**31, 2**32 - 1])
    elif what < 0.96:
        file.tensor_count = rng.choice([0, file.tensor_count + 1, max(0, file.tensor_count - 1), 2**31, 2**63, 2**64 - 1])
    elif what < 0.98:
        file.key_count = rng.choice([0, file.key_count + 1, max(0, file.key_count - 1), 2**31, 2**63, 2**64 - 1])
    else:
        file.keys.insert(0, [b"general.alignment", 4, file.pack("I", rng.choice([0, 1, 7, 8, 64, 2**20, 2**31, 2**32 - 1]))])
        file.key_count += 1
    try:
        return file.bytes()
    except struct.error:
        return raw(rng, data)


def pickle(rng, data):
    """One operation changed: its code, its argument, its place."""
    try:
        at = [op[2] for op in pickletools.genops(data)]
    except Exception:  # what torch wrote before zips has several pickles
        return raw(rng, data)
    ends = [*at[1:], len(data)]
    i = rng.randrange(len(at))
    start, end = at[i], ends[i]
    op, what = data[start:end], rng.randrange(10)
    if what < 4:
        numbers = [j for j, a in enumerate(at) if data[a:a + 1] in b"KMJ\x8aqrhj"]
        j = rng.choice(numbers) if numbers else i
        start, end = at[j], ends[j]
        code = data[start:start + 1]
        if code == b"\x8a":
            number = rng.choice(INTS)
            size = (number.bit_length() + 8) // 8
            new = b"\x8a" + bytes([size]) + number.to_bytes(size, "little", signed=True)
        else:
            size = end - start - 1
            if code == b"K" and rng.random() < 0.5:
                code, size = b"J", 4
            old = int.from_bytes(data[start + 1:end], "little")
            new = code + (rng.choice([rng.choice(INTS), old + 1, old - 1, old * 2]) % 2 ** (8 * size)).to_bytes(size, "little")
        return data[:start] + new + data[end:]
    if what < 5:
        texts = [j for j, a in enumerate(at) if data[a:a + 1] == b"X"]
        if texts:
            j = rng.choice(texts)
            word = rng.choice([rng.choice(WORDS), rng.choice(WORDS), LONG]).encode()
            return data[:at[j]] + b"X" + struct.pack("<I", len(word)) + word + data[ends[j]:]
    if what < 6:
        globals_ = [j for j, a in enumerate(at) if data[a:a + 1] == b"c"]
        if globals_:
            j = rng.choice(globals_)
            word = rng.choice([b"ctorch\nIntStorage\n", b"cos\nsystem\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"c\n\n",
                               b"ctorch\nQInt8Storage\n", b"cbuiltins\nbytearray\n", b"ctorch\n" + b"A" * 100000 + b"\n", b"ctorch\n\x1b[31mx\n"])
            return data[:at[j]] + word + data[ends[j]:]
    if what < 7:
        return data[:start] + data[end:]
    if what < 8:
        return data[:end] + op * rng.choice([1, 1, 2, 1000, 50000]) + data[end:]
    if what < 9:
        return data[:start] + bytes([rng.choice(b"(.0126FGIJKLMNPQRSTUVX]abcdeghijloqrstu}\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8e\x90\x92\x93\x94\x95\x97")]) + data[start + 1:]
    k = rng.randrange(len(at))
    first, second = sorted([(start, end), (at[k], ends[k])])
    if first == second:
        return data[:start]
    return data[:first[0]] + data[second[0]:second[1]] + data[first[1]:second[0]] + op + data[second[1]:]


def archive(rng, data):
    """A PyTorch file: the pickle inside its zip, the zip's records, or its bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            records = [(info.filename, source.read(info)) for info in source.infolist()]
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return pickle(rng, data) if rng.random() < 0.5 else raw(rng, data)
    what = rng.random()
    if what < 0.15 or not records:
        return raw(rng, data) if rng.random() < 0.5 else data[:-60] + raw(rng, data[-60:])
    if what < 0.7:
        records = [(n, pickle(rng, d) if n.endswith("data.pkl") else d) for n, d in records]
    else:
        i = rng.randrange(len(records))
        name, body = records[i]
        if rng.random() < 0.3:
            records.pop(i)
        elif rng.random() < 0.3:
            records.append((rng.choice([name, "../x", "/x", name.upper(), "a/" + name, "x" * 60000]), body))
        elif rng.random() < 0.3:
            records[i] = (rng.choice(["", "../" + name, name + "x", rng.choice(records)[0], "\x1b[1m"]), body)
        else:
            records[i] = (name, raw(rng, body))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as target:
        for name, body in records:
            info = zipfile.ZipInfo(name or "_", (1980, 1, 1, 0, 0, 0))
            info.compress_type = target.compression
            target.writestr(info, body)
    return out.getvalue()


def varint(value):
    value %= 2**64
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def fields(data):
    """Protobuf: (number, wire type, payload) of each field."""
    at, out = 0, []

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        wire = tag & 7
        if wire == 0:
            payload = number()
        else:
            size = {1: 8, 5: 4}.get(wire) if wire != 2 else number()
            payload = data[at:at + size]
            if len(payload) < size:
                raise ValueError("cut")
            at += size
        out.append((tag >> 3, wire, payload))
    return out


def message(parts):
    out = []
    for number, wire, payload in parts:
        out.append(varint(number << 3 | wire))
        out.append(varint(payload) if wire == 0 else varint(len(payload)) + payload if wire == 2 else payload)
    return b"".join(out)


def sentencepiece(rng, data):
    try:
        parts = fields(data)
        kinds = sorted({part[0] for part in parts})
        number = rng.choice(kinds)
        i = rng.choice([j for j, part in enumerate(parts) if part[0] == number])
        what = rng.random()
        if what < 0.1:
            return raw(rng, data)
        if what < 0.2:
            parts.pop(i)
        elif what < 0.3:
            parts.insert(i, rng.choice(parts))
        elif parts[i][1] == 2:
            inner = fields(parts[i][2])
            j = rng.randrange(len(inner))
            n, wire, payload = inner[j]
            if wire == 0:
                inner[j] = (n, 0, rng.choice([*INTS, payload + 1, payload - 1]))
            elif wire == 5:
                inner[j] = (n, 5, struct.pack("<f", rng.choice(BAD_FLOATS)))
            elif wire == 2:
                inner[j] = (n, 2, rng.choice([rng.choice(WORDS).encode(), b"", b"\xff\xfe", raw(rng, payload), LONG.encode() if rng.random() < 0.1 else payload * 2]))
            if rng.random() < 0.1:
                inner.pop(j)
            parts[i] = (parts[i][0], 2, message(inner))
        return message(parts)
    except (ValueError, IndexError, TypeError, OverflowError):
        return raw(rng, data)
