"""ggml's own quantizers, called from Python, and numbers of many kinds to try them with.

They come out of an npm package: its libggml-base.so is plain C to call. Needs numpy.
"""
import ctypes
import mmap
import os
import subprocess
import tarfile
from typing import NamedTuple

import numpy as np

PACKAGE = "@node-llama-cpp/linux-x64@3.22.1"
IN_PACKAGE = "package/bins/linux-x64/libggml-base.so"


class Type(NamedTuple):
    number: int
    elems: int                                          # of a block
    bytes: int


# Every type that tensors are quantized to.
TYPES = {
    "Q4_0": Type(2, 32, 18), "Q4_1": Type(3, 32, 20), "Q5_0": Type(6, 32, 22), "Q5_1": Type(7, 32, 24),
    "Q8_0": Type(8, 32, 34), "Q2_K": Type(10, 256, 84), "Q3_K": Type(11, 256, 110), "Q4_K": Type(12, 256, 144),
    "Q5_K": Type(13, 256, 176), "Q6_K": Type(14, 256, 210), "IQ1_S": Type(19, 256, 50), "IQ1_M": Type(29, 256, 56),
    "IQ2_XXS": Type(16, 256, 66), "IQ2_XS": Type(17, 256, 74), "IQ2_S": Type(22, 256, 82), "IQ3_XXS": Type(18, 256, 98),
    "IQ3_S": Type(21, 256, 110), "IQ4_NL": Type(20, 32, 18), "IQ4_XS": Type(23, 256, 136), "TQ1_0": Type(34, 256, 54),
    "TQ2_0": Type(35, 256, 66), "MXFP4": Type(39, 32, 17), "NVFP4": Type(40, 64, 36), "Q1_0": Type(41, 128, 18),
    "Q2_0": Type(42, 64, 18),
}  # fmt: skip


def fetched(folder):
    """The library, out of the package's archive, which is fetched once."""
    library = folder / (PACKAGE.rpartition("@")[2] + "-libggml-base.so")
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        run = subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"npm pack {PACKAGE}: {run.stderr.strip()}")
        archive = folder / run.stdout.split()[-1]
        part = library.with_suffix(".part")
        with tarfile.open(archive) as tar:
            part.write_bytes(tar.extractfile(IN_PACKAGE).read())
        archive.unlink()
        part.rename(library)
    return library


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def stop(message):
    """Where ggml would print a trace and abort."""
    os._exit(3)


class Ggml:
    def __init__(self, library):
        self.library = ctypes.CDLL(str(library.resolve()))
        self.library.ggml_set_abort_callback(stop)
        self.chunk = self.library.ggml_quantize_chunk
        self.chunk.restype = ctypes.c_size_t
        self.chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def needs_importance(self, kind):
        needs = self.library.ggml_quantize_requires_imatrix
        needs.restype = ctypes.c_bool
        return needs(TYPES[kind].number)

    def encoding(self, kind, rows, importance):
        """A call for `in_children`: one tensor, matrix by matrix as llama-quantize does it."""
        matrices = np.ascontiguousarray(rows.reshape(-1, *rows.shape[-2:]))
        weights = [None] * len(matrices) if importance is None else np.ascontiguousarray(importance.reshape(len(matrices), -1))
        size = matrices[0].size // TYPES[kind].elems * TYPES[kind].bytes
        self.library.ggml_quantize_init(TYPES[kind].number)     # tables, once for all children

        def fill(out):
            return sum(self.chunk(TYPES[kind].number, matrix.ctypes.data, out[i * size:].ctypes.data, 0, *matrix.shape,
                                  None if led is None else led.ctypes.data)
                       for i, (matrix, led) in enumerate(zip(matrices, weights)))

        return size * len(matrices), fill

    def decode(self, kind, data):
        data = np.ascontiguousarray(data).reshape(-1)
        out = np.empty(len(data) // TYPES[kind].bytes * TYPES[kind].elems, np.float32)
        decode = self.library["dequantize_row_" + kind.lower().replace("_k", "_K")]
        decode.argtypes, decode.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        decode(data.ctypes.data, out.ctypes.data, len(out))
        return out


def in_children(calls):
    """What each call returns, as (size, function that fills a buffer), or None where ggml stopped: it would end this process."""
    answers, running = [None] * len(calls), {}

    def reap():
        pid, status = os.wait()
        place, buffer = running.pop(pid)
        answers[place] = np.frombuffer(buffer, np.uint8)[:calls[place][0]] if status == 0 else None

    for place, (size, fill) in enumerate(calls):
        if len(running) == (os.cpu_count() or 1):
            reap()
        buffer = mmap.mmap(-1, size)                    # shared with the child
        pid = os.fork()
        if pid == 0:
            made = None
            try:
                silence = os.open(os.devnull, os.O_WRONLY)
                os.dup2(silence, 1), os.dup2(silence, 2)
                made = fill(np.frombuffer(buffer, np.uint8))
            finally:
                os._exit(0 if made == size else 4)
        running[pid] = place, buffer
    while running:
        reap()
    return answers


def outlier(g, scale, rng):
    small = g * scale * 0.01
    small[np.arange(len(g)), rng.integers(0, g.shape[1], len(g))] = 37.5 * scale[:, 0]
    return small


ROWS = {
    "normal": lambda g, scale, rng: g * scale,
    "wider": lambda g, scale, rng: g * scale * 30,
    "heavy-tailed": lambda g, scale, rng: g**3 * scale,
    "constant": lambda g, scale, rng: np.broadcast_to(scale, g.shape),
    "zero": lambda g, scale, rng: np.zeros_like(g),
    "denormal": lambda g, scale, rng: g * 1e-41,
    "tiny": lambda g, scale, rng: g * 1e-7,
    "large": lambda g, scale, rng: g * 1e3,
    "outlier": outlier,
    "positive": lambda g, scale, rng: abs(g * scale) + scale,
    "negative": lambda g, scale, rng: -abs(g * scale) - scale,
    "few levels": lambda g, scale, rng: np.round(3 * g) * scale,
    "three levels": lambda g, scale, rng: np.sign(np.round(g)) * scale,
    "halves": lambda g, scale, rng: np.round(8 * g) / 2,
    "half zero": lambda g, scale, rng: np.where(np.arange(g.shape[1]) // 32 % 2 == 0, 0.0, g * scale),
    "sparse": lambda g, scale, rng: np.where(rng.random(g.shape) < 1 / 60, g * scale, -0.0),
    "many magnitudes": lambda g, scale, rng: np.exp(2 * g) * scale * rng.choice([-1, 1], g.shape),
    "nearly one": lambda g, scale, rng: (1 + g * 1e-6) * rng.choice([-1, 1], g.shape),
}
IMPORTANCE = {
    "squares": lambda g, rng: g * g,
    "ones": lambda g, rng: np.ones_like(g),
    "a third zero": lambda g, rng: np.where(rng.random(g.shape) < 1 / 3, 0.0, g * g * 100),
    "heavy-tailed": lambda g, rng: np.exp(3 * g),
    "stretches of zero": lambda g, rng: np.where(np.arange(g.shape[-1]) // 16 % 3 == 0, 0.0, abs(g)),
    "zero": lambda g, rng: np.zeros_like(g),
    "tiny": lambda g, rng: g * g * 1e-30,
    "huge": lambda g, rng: g * g * 1e20,
}


def rows(rng, count, width, kinds=ROWS):
    g = rng.standard_normal((count, width))
    scale = np.exp2(2 * rng.standard_normal((count, 1))) * 0.02
    made = np.empty((count, width), np.float32)
    for i, kind in enumerate(kinds.values()):
        made[i::len(kinds)] = kind(g[i::len(kinds)], scale[i::len(kinds)], rng)
    return made
