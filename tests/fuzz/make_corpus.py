"""Writes the seed corpora beside this file: small right files, and one file for each kind of broken one.

    python make_corpus.py          # Python's standard library is enough

The name of a seed says what its reader makes of it: `ok-*` is read, `bad-*` refused, `odd-*` either; tests/corpus.rs holds
every file to that. What fuzzing found stands beside them as `found-*` and is written by no script. The kinds are
those of llama.cpp's tests/test-gguf.cpp and of the safetensors repository's tests and attacks/README.md.
"""
import json
import struct
from pathlib import Path

HERE = Path(__file__).parent / "corpus"


def write(reader, name, data):
    folder = HERE / reader
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


# GGUF

class Gguf:
    """A file piece by piece, in either byte order."""

    def __init__(self, version=3, tensors=0, keys=0, order="<"):
        self.order = order
        self.data = b"GGUF" + self.pack("IQQ", version, tensors, keys)

    def pack(self, kinds, *values):
        return struct.pack(self.order + kinds, *values)

    def add(self, kinds, *values):
        self.data += self.pack(kinds, *values)
        return self

    def raw(self, data):
        self.data += data
        return self

    def string(self, text):
        return self.add("Q", len(text)).raw(text)

    def tensor(self, name, dims, kind, offset):
        self.string(name).add("I", len(dims))
        for dim in dims:
            self.add("Q", dim)
        return self.add("IQ", kind, offset)

    def pad(self, alignment=32):
        return self.raw(bytes(-len(self.data) % alignment))


SCALARS = [("B", 200), ("b", -100), ("H", 60000), ("h", -30000), ("I", 2**31), ("i", -2**31), ("f", 0.5), ("B", 1)]
WIDE = [("Q", 2**63), ("q", -2**63), ("d", 1e300)]


def every_value(order):
    file = Gguf(keys=26, order=order)
    for kind, (code, value) in list(enumerate(SCALARS)) + list(enumerate(WIDE, 10)):
        file.string(b"v%d" % kind).add("I", kind).add(code, value)
        file.string(b"a%d" % kind).add("IIQ", 9, kind, 2).add(code, value).add(code, value)
    file.string(b"v8").add("I", 8).string("größe".encode())
    file.string(b"a8").add("IIQ", 9, 8, 3).string(b"a").string(b"").string(b"\xff\x00")
    file.string(b"general.architecture").add("I", 8).string(b"llama")
    file.string(b"empty").add("IIQ", 9, 4, 0)
    return file.pad().data


def tensors(order, kinds):
    file = Gguf(tensors=len(kinds), order=order)
    offset = 0
    sizes = []
    for kind, elems, size in kinds:
        file.tensor(b"blk.%d.weight" % kind, [elems, 2], kind, offset)
        sizes.append(2 * size)
        offset += -(-2 * size // 32) * 32
    file.pad()
    for size in sizes:
        file.raw(bytes(i % 60 for i in range(size))).pad()
    return file.data


def gguf():
    def ok(name, data):
        write("gguf", "ok-" + name, data)

    def bad(name, file):
        write("gguf", "bad-" + name, file.data if isinstance(file, Gguf) else file)

    plain = [(0, 3, 12), (1, 3, 6), (24, 3, 3), (25, 3, 6), (26, 3, 12), (27, 3, 24), (28, 3, 24), (30, 3, 6)]
    swapped = [(2, 32, 18), (8, 32, 34), (12, 256, 144), (14, 256, 210), (35, 256, 66), (39, 32, 17), (40, 64, 36), (41, 128, 18)]
    others = [(3, 32, 20), (6, 32, 22), (7, 32, 24), (9, 32, 36), (10, 256, 84), (11, 256, 110), (13, 256, 176), (15, 256, 292),
              (16, 256, 66), (17, 256, 74), (18, 256, 98), (19, 256, 50), (20, 32, 18), (21, 256, 110), (22, 256, 82),
              (23, 256, 136), (29, 256, 56), (34, 256, 54), (42, 64, 18)]
    ok("empty", Gguf().pad().data)
    ok("version-2", Gguf(version=2).pad().data)
    for order, name in [("<", "little"), (">", "big")]:
        ok("values-" + name, every_value(order))
        ok("plain-" + name, tensors(order, plain))
        ok("swapped-" + name, tensors(order, swapped))
    ok("blocks", tensors("<", others))
    bad("blocks-big", tensors(">", others))
    ok("scalar-and-empty", Gguf(tensors=2).tensor(b"s", [], 0, 0).tensor(b"e", [4, 0], 0, 32).pad().raw(bytes(32)).data)
    ok("vector-of-blocks", Gguf(tensors=1).tensor(b"w", [64], 8, 0).pad().raw(bytes(68)).data)
    key = lambda: Gguf(keys=1).string(b"general.alignment")
    ok("alignment-1", key().add("II", 4, 1).data)
    ok("alignment-large", Gguf(keys=1).string(b"general.alignment").add("II", 4, 2**31).data)
    split = Gguf(keys=3, tensors=1).string(b"split.no").add("IH", 2, 0).string(b"split.count").add("IH", 2, 2)
    split.string(b"split.tensors.count").add("Ii", 5, 1).tensor(b"w", [4], 0, 0).pad().raw(bytes(32))
    ok("shard", split.data)

    bad("nothing", b"")
    bad("magic", b"FUGG" + Gguf().data[4:])
    for version in [0, 1, 4]:
        bad("version-%d" % version, Gguf(version=version).pad())
    bad("version-1-big", Gguf(version=1, order=">").pad())
    bad("tensor-count", Gguf(tensors=2**64 - 1).pad())
    bad("key-count", Gguf(keys=2**64 - 1).pad())
    bad("key-size", Gguf(keys=1).add("Q", 2**64 - 1).raw(b"my_key_0").add("I", 0).pad())
    bad("key-empty", Gguf(keys=1).string(b"").add("IB", 0, 1).pad())
    bad("key-not-utf8", Gguf(keys=1).string(b"\xff").add("IB", 0, 1).pad())
    bad("key-twice", Gguf(keys=2).string(b"k").add("IB", 0, 1).string(b"k").add("IB", 0, 2).pad())
    bad("value-type", Gguf(keys=1).string(b"k").add("I", 13).pad())
    bad("value-size", Gguf(keys=1).string(b"k").add("IQ", 8, 2**64 - 1).pad())
    bad("array-type", Gguf(keys=1).string(b"k").add("IIQ", 9, 13, 0).pad())
    bad("array-in-array", Gguf(keys=1).string(b"k").add("IIQ", 9, 9, 1).add("IQ", 0, 0).pad())
    bad("array-size", Gguf(keys=1).string(b"k").add("IIQ", 9, 4, 2**62).pad())
    bad("bool", Gguf(keys=1).string(b"k").add("IB", 7, 2).pad())
    bad("alignment", key().add("II", 4, 13).pad())
    bad("alignment-0", key().add("II", 4, 0).pad())
    bad("alignment-type", key().add("Ii", 5, 32).pad())
    one = lambda *tensor: Gguf(tensors=1).tensor(*tensor).pad().raw(bytes(64))
    bad("name-size", one(b"n" * 64, [4], 0, 0))
    bad("name-empty", one(b"", [4], 0, 0))
    bad("name-not-utf8", one(b"\xff", [4], 0, 0))
    bad("dimensions", one(b"w", [1] * 5, 0, 0))
    bad("shape", one(b"w", [2**64 - 1], 0, 0))
    bad("elements", one(b"w", [4 * (2**31 - 1)] * 2, 24, 0))
    bad("bytes", one(b"w", [1533916891] * 2, 27, 0))
    bad("pad-wrap", one(b"w", [4, 2**30 - 1, 2**30 + 1], 0, 0))
    bad("type", one(b"w", [4], 43, 0))
    bad("type-removed", one(b"w", [32], 4, 0))
    bad("rows", one(b"w", [33], 8, 0))
    bad("offset", one(b"w", [4], 0, 2**64 - 1))
    two = lambda second, offset: Gguf(tensors=2).tensor(b"v", [3], 24, 0).tensor(second, [3], 24, offset).pad()
    bad("name-twice", two(b"v", 32).raw(bytes(64)))
    bad("overlap", two(b"w", 0).raw(bytes(64)))
    bad("inconsistent-alignment", two(b"w", 3).raw(bytes(64)))
    bad("gap", two(b"w", 64).raw(bytes(96)))
    bad("data", two(b"w", 32).raw(bytes(34)))
    huge = Gguf(tensors=2).tensor(b"v", [2**63 - 64], 24, 0).tensor(b"w", [2**63 - 64], 24, 2**63 - 64).pad()
    bad("memory", huge.raw(bytes(32)))


# safetensors

def safetensors():
    def file(header, data=b"", length=None):
        text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def entry(dtype="F32", shape=(1,), offsets=(0, 4), **extra):
        return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **extra}

    def ok(name, data):
        write("safetensors", "ok-" + name, data)

    def bad(name, data):
        write("safetensors", "bad-" + name, data)

    sizes = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
             "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for dtype, size in sizes.items():
        header[dtype.lower()] = entry(dtype, [1, 3], [offset, offset + 3 * size])
        offset += 3 * size
    ok("types", file(header, bytes(i % 60 for i in range(offset))))
    ok("empty", file({}))
    ok("padded", file(b"\t\n{}\r "))
    ok("zero", file({"e": entry(shape=[2, 0], offsets=[0, 0]), "s": entry(shape=[])}, bytes(4)))

    bad("nothing", b"")
    bad("short", b"abc")
    bad("length", file({}, length=2**64 - 1))
    bad("length-limit", file({}, length=100_000_001))
    bad("length-past-the-end", struct.pack("<Q", 60))
    bad("no-header", file(b""))
    bad("not-json", file(b"{"))
    bad("not-utf8", file(b"\xff"))
    bad("name-not-utf8", file(b'{"\xff":{}}'))
    bad("array", file([1]))
    bad("trailing", file(b"{}{}"))
    bad("nested", file(b'{"w":' * 200))
    bad("nested-shape", file({"w": entry(shape=[[[[1]]]])}, bytes(4)))
    bad("metadata-number", file({"__metadata__": {"n": 1}}))
    bad("metadata-nested", file({"__metadata__": {"n": {"m": "x"}}}))
    bad("metadata-twice", file(b'{"__metadata__":{},"__metadata__":{}}'))
    bad("dtype", file({"w": entry("F99")}, bytes(4)))
    for dtype, size in {"F4": 2, "F6_E2M3": 3, "F6_E3M2": 3}.items():
        bad("dtype-" + dtype.lower(), file({"w": entry(dtype, [4], [0, size])}, bytes(size)))
    bad("shape-bool", file({"w": entry(shape=[True])}, bytes(4)))
    bad("shape-negative", file({"w": entry(shape=[-1])}, bytes(4)))
    bad("shape-float", file({"w": entry(shape=[1.0])}, bytes(4)))
    bad("shape-overflow", file({"w": entry(shape=[2, 2**64 - 2])}, bytes(4)))
    bad("bytes-overflow", file({"w": entry(shape=[2, 2**63 - 1])}, bytes(4)))
    bad("shape-too-big", file({"w": entry(shape=[2**64])}, bytes(4)))
    bad("unknown-field", file({"w": entry(strides=[1])}, bytes(4)))
    bad("missing-field", file({"w": {"dtype": "F32", "shape": []}}, bytes(4)))
    bad("offsets-negative", file({"w": entry(offsets=[-4, 0])}, bytes(4)))
    bad("offsets-reversed", file({"w": entry(offsets=[4, 0])}, bytes(4)))
    bad("offsets-three", file({"w": entry(offsets=[0, 4, 8])}, bytes(4)))
    bad("out-of-range", file({"w": entry(offsets=[0, 4])}, bytes(3)))
    bad("size", file({"w": entry(shape=[2])}, bytes(4)))
    bad("overlap", file({"v": entry(), "w": entry()}, bytes(4)))
    bad("overlap-in-part", file({"v": entry(), "w": entry(offsets=[2, 6])}, bytes(6)))
    bad("gap", file({"v": entry(), "w": entry(offsets=[8, 12])}, bytes(12)))
    bad("gap-at-start", file({"w": entry(offsets=[4, 8])}, bytes(8)))
    bad("polyglot", file({"w": entry()}, bytes(4) + b"PK\x03\x04"))
    bad("name-twice", file(b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', bytes(2)))
    bad("bomb", file({"w%03d" % i: entry() for i in range(200)}, bytes(4)))


# config.json and the index of shards

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "vocab_size": 16, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32",
}


def configs():
    def seed(name, value):
        write("config", name, value if isinstance(value, bytes) else json.dumps(value).encode())

    seed("ok-llama", LLAMA)
    seed("ok-qwen2", LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False})
    seed("ok-llama3-rope", LLAMA | {"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}})
    seed("bad-nothing", b"")
    seed("bad-array", [])
    seed("bad-nested", b'{"a":' * 200)
    seed("bad-unknown-field", LLAMA | {"surprise": 1})
    seed("bad-architecture", LLAMA | {"architectures": ["Unheard"], "model_type": "unheard"})
    seed("bad-negative", LLAMA | {"num_hidden_layers": -1})
    seed("bad-zero-heads", LLAMA | {"num_attention_heads": 0})
    seed("bad-large", LLAMA | {"num_hidden_layers": 2**40})
    seed("bad-float", LLAMA | {"hidden_size": 8.5})


def indexes():
    def seed(name, value):
        write("index", name, value if isinstance(value, bytes) else json.dumps(value).encode())

    right = {"a": "one.safetensors", "b": "two.safetensors"}
    seed("ok-both", {"metadata": {"total_size": 8}, "weight_map": right})
    seed("ok-without-metadata", {"weight_map": right})
    seed("bad-nothing", b"")
    seed("bad-no-map", {})
    seed("bad-nested", b'{"weight_map":' + b'{"a":' * 200)
    seed("bad-number", {"weight_map": {"a": 1}})
    for i, name in enumerate(["../one.safetensors", "/etc/passwd", "./one.safetensors", "..", "", "three.safetensors", "two.safetensors"]):
        seed("bad-name-%d" % i, {"weight_map": right | {"a": name}})
    seed("bad-surplus", {"weight_map": right | {"c": "one.safetensors"}})


def sentencepiece():
    def seed(name, *fields):
        write("sentencepiece", name, b"".join(fields))

    def varint(value):
        data = b""
        while value >= 0x80:
            data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
        return data + bytes([value])

    def number(field, value):
        return varint(field << 3) + varint(value)

    def message(field, *parts):
        data = b"".join(parts)
        return varint(field << 3 | 2) + varint(len(data)) + data

    def piece(text, kind=1, score=-1.0):
        return message(1, message(1, text), varint(2 << 3 | 5), struct.pack("<f", score), number(3, kind))

    unk = piece(b"<unk>", 2, 0.0)
    seed("ok-smallest", unk)
    seed("ok-bpe", unk, piece(b"<s>", 3), piece("\u2581a".encode()), piece(b"<0x0A>", 6), message(2, number(3, 2), number(35, 1)),
         message(3, message(1, b"identity"), number(3, 0), number(4, 1)))
    seed("ok-unigram-with-map", unk, piece(b"a"), message(2, number(3, 1)), message(3, message(1, b"n"), message(2, bytes(range(64)))), message(5))
    seed("ok-bytes-without-unknown", *(piece(b"<0x%02X>" % i, 6) for i in range(256)))
    seed("ok-unknown-fields", number(99, 2**64 - 1), varint(98 << 3 | 1) + bytes(8), unk, varint(97 << 3 | 5) + bytes(4), message(96, b"?"))
    seed("ok-settings-twice", unk, message(2, number(3, 2)), message(2, number(3, 1)), message(3, number(3, 0)), message(3, number(3, 1)))
    seed("ok-kind-of-the-future", unk, piece(b"a", 77))
    seed("ok-score-of-another-type", unk, message(1, message(1, b"a"), number(2, 7)))
    seed("bad-nothing")
    seed("bad-no-unknown", piece(b"a"))
    seed("bad-two-unknown", unk, piece(b"<u>", 2))
    seed("bad-text-twice", unk, piece(b"a"), piece(b"a"))
    seed("bad-text-empty", unk, piece(b""))
    seed("bad-text-absent", unk, message(1, number(3, 1)))
    seed("bad-text-not-utf8", unk, piece(b"\xff"))
    seed("bad-score-nan", unk, piece(b"a", 1, float("nan")))
    seed("bad-score-infinite", unk, piece(b"a", 1, float("-inf")))
    seed("bad-cut-in-tag", unk, b"\x8a")
    seed("bad-cut-in-length", unk, b"\x0a\x80")
    seed("bad-cut-in-piece", (unk + piece(b"abc"))[:-3])
    seed("bad-length-past-the-end", unk, b"\x0a\x7f\x0a")
    seed("bad-length-huge", unk, b"\x0a" + varint(2**64 - 1))
    seed("bad-length-past-the-piece", b"\x0a\x03\x0a\x05a", unk)
    seed("bad-number-of-eleven-bytes", unk, b"\x20" + b"\x80" * 10 + b"\x01")
    seed("bad-number-past-64-bits", unk, b"\x20" + b"\xff" * 9 + b"\x02")
    seed("bad-group", unk, b"\x0b\x0c")
    seed("bad-wire-type", unk, b"\x0e")
    seed("bad-json", b'{"model": {"type": "BPE"}}')


# Importance matrices

NAN, INFINITY = float("nan"), float("inf")


def imatrix():
    def floats(*values, order="<"):
        return struct.pack(f"{order}{len(values)}f", *values)

    def keys(file, chunks=2, size=512, kind=b"imatrix"):
        """The four keys that every file of this kind has."""
        file.string(b"general.type").add("I", 8).string(kind)
        file.string(b"imatrix.datasets").add("IIQ", 9, 8, 1).string(b"a.txt")
        file.string(b"imatrix.chunk_count").add("II", 4, chunks)
        return file.string(b"imatrix.chunk_size").add("II", 4, size)

    def new(tensors, order="<", **values):
        """A GGUF file of (name, dimensions, numbers), in F32 unless a fourth says otherwise."""
        file = keys(Gguf(tensors=len(tensors), keys=4, order=order), **values)
        offset = 0
        for name, dims, numbers, *kind in tensors:
            file.tensor(name, dims, *(kind or [0]), offset)
            offset += -(-4 * len(numbers) // 32) * 32
        file.pad()
        for _, _, numbers, *_ in tensors:
            file.raw(floats(*numbers, order=order)).pad()
        return file.data

    def pair(name=b"w", sums=(4.0, 9.0), counts=(2.0,), dims=None, count_dims=None):
        return [(name + b".in_sum2", dims or [len(sums)], sums), (name + b".counts", count_dims or [1, len(counts)], counts)]

    def entry(name=b"w", calls=2, values=(4.0, 9.0), length=None, count=None):
        return (struct.pack("<i", len(name) if length is None else length) + name +
                struct.pack("<ii", calls, len(values) if count is None else count) + floats(*values))

    def old(*entries, count=None, tail=struct.pack("<ii", 2, 5) + b"a.txt"):
        return struct.pack("<i", len(entries) if count is None else count) + b"".join(entries) + tail

    def ok(name, data):
        write("imatrix", "ok-" + name, data)

    def bad(name, data):
        write("imatrix", "bad-" + name, data)

    experts = pair(b"e", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (2.0, 0.0, 3.0), [2, 3], [1, 3])
    for order, name in [("<", "little"), (">", "big")]:
        ok("gguf-" + name, new(pair() + pair(b"v", (0.0, 1e-40, 3e38), (1.0,)) + experts, order))
    ok("gguf-other-tensors", new(pair() + [(b"x", [1], [NAN]), (b"y.sum", [1], [1.0])]))
    ok("gguf-count-0", new(pair(counts=(0.0,))))
    ok("gguf-count-0-of-nan", new(pair(sums=(NAN, -1.0), counts=(0.0,))))
    ok("gguf-count-below-half", new(pair(counts=(0.49,))))
    ok("gguf-count-minus-0", new(pair(counts=(-0.0,))))
    ok("gguf-many-chunks", new(pair(), chunks=2**31 - 1))
    ok("old", old(entry(), entry(b"v", 1, (0.0, 1e-40, 3e38)), entry("größe".encode())))
    ok("old-calls-0", old(entry(calls=0)))
    ok("old-without-end", old(entry(), tail=b""))
    ok("old-without-dataset", old(entry(), tail=struct.pack("<i", 2)))
    ok("old-and-more", old(entry()) + b"more")
    ok("old-dataset-empty", old(entry(), tail=struct.pack("<ii", 0, 0)))
    ok("old-dataset-long", old(entry(), tail=struct.pack("<ii", 2, 200) + b"a" * 200))

    bad("nothing", b"")
    bad("short", b"\x01\0\0")
    bad("magic", b"FUGG" + new(pair())[4:])
    bad("magic-alone", b"GGUF")
    bad("gguf-cut-off", new(pair())[:-32])
    bad("gguf-cut-in-header", new(pair())[:100])
    bad("gguf-kind", new(pair(), kind=b"model"))
    bad("gguf-chunk-count", new(pair(), chunks=2**31))
    for i, missing in enumerate([b"imatrix.datasets", b"imatrix.chunk_count", b"imatrix.chunk_size"]):
        bad("gguf-key-%d" % i, new(pair()).replace(missing, missing[:-1] + b"_"))
    bad("gguf-dataset-number", new(pair()).replace(*(b"datasets" + struct.pack("<II", 9, kind) for kind in [8, 0])))
    bad("gguf-no-entry", new([]))
    bad("gguf-name-empty", new(pair(b"")))
    bad("gguf-name-twice", new(pair() + pair()))
    bad("gguf-sums-alone", new(pair()[:1]))
    bad("gguf-counts-alone", new(pair()[1:]))
    bad("gguf-f16", new([(b"w.in_sum2", [4], (4.0, 9.0), 1), pair()[1]]))
    bad("gguf-counts-i32", new([pair()[0], (b"w.counts", [1], (2.0,), 26)]))
    bad("gguf-no-sums", new([(b"w.in_sum2", [0], ()), pair()[1]]))
    bad("gguf-no-counts", new([pair()[0], (b"w.counts", [0], ())]))
    bad("gguf-more-counts", new(pair(counts=(2.0, 2.0, 2.0))))
    bad("gguf-counts-that-do-not-divide", new(pair(sums=(1.0, 2.0, 3.0), counts=(2.0, 2.0))))
    for name, value in [("nan", NAN), ("infinite", INFINITY), ("negative", -1.0), ("tiny-negative", -1e-40)]:
        bad("gguf-sum-" + name, new(pair(sums=(4.0, value))))
        bad("gguf-count-" + name, new(pair(counts=(value,))))
    bad("gguf-count-overflows", new(pair(counts=(2.0**63,))))
    bad("gguf-dimensions-overflow", new(pair(dims=[2**62, 2])))

    for name, count in [("0", 0), ("negative", -1), ("large", 2**31 - 1), ("past-the-end", 2)]:
        bad("old-entries-" + name, old(entry(), count=count))
    for name, length in [("0", 0), ("negative", -1), ("large", 2**31 - 1)]:
        bad("old-name-length-" + name, old(entry(length=length)))
        bad("old-values-" + name, old(entry(count=length)))
    bad("old-values-overflow", old(entry(count=2**30)))
    bad("old-name-empty", old(entry(b"")))
    bad("old-name-not-utf8", old(entry(b"\xff")))
    bad("old-name-with-zero", old(entry(b"a\0b")))
    bad("old-name-twice", old(entry(), entry()))
    bad("old-calls-negative", old(entry(calls=-1)))
    for name, value in [("nan", NAN), ("infinite", INFINITY), ("negative", -1.0), ("tiny-negative", -1e-40)]:
        bad("old-value-" + name, old(entry(calls=1, values=(4.0, value))))
    bad("old-cut-in-name", old(entry(b"a long enough name"), tail=b"")[:20])
    bad("old-cut-in-values", old(entry(), tail=b"")[:-1])
    bad("old-cut-in-chunks", old(entry(), tail=b"\x02\0"))
    bad("old-cut-in-dataset", old(entry(), tail=struct.pack("<ii", 2, 5) + b"a"))
    bad("old-chunks-negative", old(entry(), tail=struct.pack("<i", -2)))
    bad("old-dataset-negative", old(entry(), tail=struct.pack("<ii", 2, -5)))
    bad("old-dataset-large", old(entry(), tail=struct.pack("<ii", 2, 2**31 - 1)))


# Inputs that stand for several files, a zero byte between them: the project's own fixtures, whole and with one fault.

FIXTURES = Path(__file__).parents[2] / "fixtures"


def tokenizers():
    def seed(name, config, settings, tokenizer):
        part = lambda value: value if isinstance(value, bytes) else json.dumps(value).encode()
        write("tokenizer", name, b"\0".join(map(part, (config, settings, tokenizer))))

    read = lambda path: json.loads(path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
    for name in ["bert", "gemma3-json", "granite", "llama-hf", "llama-spm", "llama3", "phi4", "roberta", "xlm-roberta-json"]:
        folder = FIXTURES / "vocab" / name / "model"
        files = [next(path for path in (folder / "tokenizer.json", folder / "tokenizer.model") if path.exists())]
        seed("ok-" + name, read(folder / "config.json"), read(folder / "tokenizer_config.json"), read(files[0]))
    folder = FIXTURES / "vocab/phi4/model"
    config, settings, right = (read(folder / name) for name in ("config.json", "tokenizer_config.json", "tokenizer.json"))
    model = right["model"]
    seed("bad-no-tokenizer", config, settings, b"")
    seed("bad-vocab-size", config | {"vocab_size": 3}, settings, right)
    seed("odd-vocab-empty", config, settings, right | {"model": model | {"vocab": {}}})
    seed("bad-id-negative", config, settings, right | {"model": model | {"vocab": model["vocab"] | {"zz": -1}}})
    seed("bad-id-huge", config, settings, right | {"model": model | {"vocab": model["vocab"] | {"zz": 2**31}}})
    seed("bad-merges", config, settings, right | {"model": model | {"merges": [["a"]]}})
    seed("bad-added-tokens", config, settings, right | {"added_tokens": [{"id": 2**63}]})
    seed("bad-nested", config, settings, b'{"model":' * 200)


def adapters():
    def seed(name, config, tensors):
        config = json.dumps(config).encode() if isinstance(config, dict) else config
        write("adapter", name, config + b"\0" + tensors)

    kinds = ["adalora", "boft", "ia3", "loha", "lokr", "lokr-low-rank", "lora", "lora-biases", "lora-dora", "lora-embedding", "lora-saved", "norms",
             "oft", "oft-blocks", "tokens", "vblora", "vblora-topk", "vera"]
    for kind in kinds:
        folder = FIXTURES / "adapters" / kind
        seed("ok-" + kind, (folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes())
    for kind in ["dora", "full", "glora", "ia3", "loha", "lokr", "lora"]:
        seed("ok-lycoris-" + kind, b"", (FIXTURES / "adapters/lycoris" / (kind + ".safetensors")).read_bytes())
    folder = FIXTURES / "adapters/lora"
    config, tensors = json.loads((folder / "adapter_config.json").read_bytes()), (folder / "adapter_model.safetensors").read_bytes()
    size = struct.unpack("<Q", tensors[:8])[0]
    header, data = tensors[:8 + size], tensors[8 + size:]
    seed("bad-kind", config | {"peft_type": "UNHEARD"}, tensors)
    seed("bad-rank", config | {"r": 2**31 - 1}, tensors)
    seed("bad-rank-0", config | {"r": 0}, tensors)
    seed("bad-alpha", config | {"lora_alpha": "x"}, tensors)
    seed("odd-pattern", config | {"target_modules": "("}, tensors)
    seed("bad-unknown-field", config | {"surprise": 1}, tensors)
    seed("bad-activated", config | {"alora_invocation_tokens": [1]}, tensors)
    seed("bad-integers", config, header.replace(b'"F32"', b'"I32"') + data)
    seed("bad-nan", config, header + struct.pack("<f", NAN) + data[4:])
    seed("bad-infinite", config, header + struct.pack("<f", INFINITY) + data[4:])
    seed("bad-nothing", config, b"")
    seed("bad-no-config", b"", tensors)


gguf()
safetensors()
configs()
indexes()
sentencepiece()
imatrix()
tokenizers()
adapters()
