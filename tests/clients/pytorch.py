"""Checks that torch reads PyTorch files of ours as it reads what they were made from.

    pytorch.py SOURCE WRITTEN [KEY]

SOURCE is a file of torch.save, or of safetensors; WRITTEN is a .bin of ours, or a folder with shards
and their index. Every tensor has to be equal bit by bit, under the same name and in the same order.
KEY is the dotted path that was chosen in SOURCE, if one was.
"""

import json
import pathlib
import sys
import zipfile

import torch
from safetensors.torch import load_file


def flat(value, prefix=""):
    if isinstance(value, torch.Tensor):
        yield prefix, value.detach()
    elif isinstance(value, (dict, list, tuple)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from flat(part, f"{prefix}.{key}" if prefix else str(key))


def load(path):
    """Three ways into one file, which have to agree."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        assert damaged is None, f"{path}: wrong CRC-32 of {damaged}"
    plain = torch.load(path, weights_only=True)
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert list(plain) == list(mapped)
    for name, tensor in plain.items():
        assert equal(tensor, mapped[name]), f"{path}: {name} differs when mapped"
    return plain


def bits(tensor):
    # A fresh tensor: a single element may keep any stride otherwise, and then has no view as bytes.
    dense = torch.empty(tensor.numel(), dtype=tensor.dtype)
    dense.copy_(tensor.reshape(-1))
    return dense.view(torch.uint8)


def equal(a, b):
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.numel() == 0 or torch.equal(bits(a), bits(b))


def load_folder(folder):
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    tensors = {}
    for shard in sorted(set(index["weight_map"].values())):
        for name, tensor in load(folder / shard).items():
            assert index["weight_map"].pop(name) == shard, f"{name} is not in {shard}"
            tensors[name] = tensor
    assert not index["weight_map"], f"only in the index: {index['weight_map']}"
    return tensors


def main(source, written, key=None):
    source, written = pathlib.Path(source), pathlib.Path(written)
    if source.suffix == ".safetensors":
        expected = load_file(source)
    else:
        whole = torch.load(source, weights_only=False)
        expected = dict(flat(whole if not isinstance(whole, torch.Tensor) else {"tensor": whole}))
    if key:
        expected = {name[len(key) + 1 :]: t for name, t in expected.items() if name.startswith(key + ".")}
    found = load_folder(written) if written.is_dir() else load(written)
    assert set(found) == set(expected), set(found) ^ set(expected)
    if source.suffix != ".safetensors":
        assert list(found) == list(expected), "another order"
    for name, tensor in expected.items():
        assert equal(tensor, found[name]), f"{name}: {tensor.dtype} {tuple(tensor.shape)} differs"
    print(f"{written}: {len(found)} tensors equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
