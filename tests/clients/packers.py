"""Packs weights as quantizers of checkpoints do, by the methods' own libraries where they run on a CPU, and says what
the packed weights are: by the library, or by a formula of its own in numpy and torch.

A packer takes a weight of BF16, `[out, in]`, and returns its parts by the end of their names after the weight's name
(".qweight" stands for the module's name and that), and the values in F32. `PACKERS` has the quantization_config, too.
"""
import collections
import types

import bitsandbytes.functional as bnb
import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float32)


def words(codes, bits):
    """Rows of codes as rows of 32-bit words, one number of many bits a row."""
    rows = []
    for row in codes.tolist():
        number = sum(code << (bits * place) for place, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append([(number >> (32 * place)) & 0xffffffff for place in range(count)])
    return torch.from_numpy(np.array(rows, dtype=np.uint32).view(np.int32))


def blocks(scale, block, shape):
    for dim, size in enumerate(block):
        scale = scale.repeat_interleave(size, dim)
    return scale[tuple(slice(0, size) for size in shape)]


def fp8(block=None, dtype=torch.float8_e4m3fn, end=".weight_scale_inv", scale_dtype=torch.float32):
    def pack(w):
        w = w.float()
        top = torch.finfo(dtype).max
        if block is None:
            scale = (w.abs().max() / top).to(scale_dtype)
            whole = scale.float().expand(w.shape)
        elif block == "channel":
            scale = (w.abs().amax(1, keepdim=True) / top).to(scale_dtype)
            whole = scale.float().expand(w.shape)
        else:
            cells = [-(-size // of) for size, of in zip(w.shape, block)]
            scale = torch.empty(cells)
            for i in range(cells[0]):
                for j in range(cells[1]):
                    scale[i, j] = w[i * block[0]:(i + 1) * block[0], j * block[1]:(j + 1) * block[1]].abs().max() / top
            scale = scale.to(scale_dtype)
            whole = blocks(scale.float(), block, w.shape)
        values = (w / whole).clamp(-top, top).to(dtype)
        return {".weight": values, end: scale, ".input_scale": torch.tensor([0.5])}, values.float() * whole
    return pack


def cast(dtype):
    return lambda w: ({".weight": w.to(dtype)}, w.to(dtype).float())


def gptq(bits, group=32, v2=False, order=False, symmetric=False, scale_dtype=torch.float16):
    def pack(w):
        inputs, top = w.shape[1], 2 ** bits - 1
        groups = torch.arange(inputs) // group
        if order:
            groups = groups[torch.randperm(inputs)]
        scale = torch.empty(inputs // group, w.shape[0])
        zero = torch.empty(inputs // group, w.shape[0], dtype=torch.int64)
        for g in range(inputs // group):
            part = w.float()[:, groups == g]
            scale[g] = (part.amax(1) - part.amin(1)) / top
            zero[g] = torch.full((w.shape[0],), 2 ** (bits - 1)) if symmetric else (-part.amin(1) / scale[g]).round().clamp(1, top).long()
        scale = scale.to(scale_dtype)
        codes = ((w.float() / scale.float()[groups].T).round().long() + zero[groups].T).clamp(0, top)
        values = scale.float()[groups].T * (codes - zero[groups].T).float()
        if bits == 3:
            values = values.to(scale_dtype).float()
        stored = zero if v2 else zero - 1
        return {".qweight": words(codes, bits).T.contiguous(), ".qzeros": words(stored, bits), ".scales": scale,
                ".g_idx": groups.to(torch.int32)}, values
    return pack


def awq(group=32):
    def pack(w):
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        grouped = w.float().T.reshape(-1, group, w.shape[0])
        scale = ((grouped.amax(1) - grouped.amin(1)) / 15).to(torch.float16)
        zero = (-grouped.amin(1) / scale.float()).round().clamp(0, 15).long()
        codes = ((grouped / scale.float().unsqueeze(1)).round().long() + zero.unsqueeze(1)).clamp(0, 15).reshape(w.shape[1], w.shape[0])
        stored = lambda codes: words(codes.reshape(codes.shape[0], -1, 8)[:, :, order].reshape(codes.shape), 4)
        group_of = torch.arange(w.shape[1]) // group
        values = ((codes - zero[group_of]).to(torch.float16) * scale[group_of]).T
        return {".qweight": stored(codes), ".qzeros": stored(zero), ".scales": scale}, values.float()
    return pack


def library(form, by_reference, ordered=False, **args):
    """compressed-tensors' own compressor. The converter computes in F32 what it knows; else the library's values."""
    args = QuantizationArgs(**args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=None)
    compressor = BaseCompressor.get_value_from_registry(form)

    def pack(w):
        low, high = (-448, 448) if args.type == "float" else (-2 ** (args.num_bits - 1), 2 ** (args.num_bits - 1) - 1)
        if args.num_bits == 4 and args.type == "float":
            low, high = -6, 6
        if args.strategy in ("group", "tensor_group"):
            parts = w.float().reshape(w.shape[0], -1, args.group_size)
        elif args.strategy == "channel":
            parts = w.float().unsqueeze(1)
        elif args.strategy == "block":
            n, m = args.block_structure
            parts = w.float().reshape(w.shape[0] // n, n, w.shape[1] // m, m).permute(0, 2, 1, 3).flatten(2)
        else:
            parts = w.float().reshape(1, 1, -1)
        state = {"weight": w}
        if args.symmetric:
            scale, zero = parts.abs().amax(-1) / high, None
        else:
            scale = (parts.amax(-1) - parts.amin(-1)) / (high - low)
            zero = (low - parts.amin(-1) / scale).round().clamp(low, high).to(torch.int8)
            state["weight_zero_point"] = zero
        if args.strategy == "tensor":
            scale, zero = scale.reshape(1), None if zero is None else zero.reshape(1)
        if form.startswith("nvfp4"):
            state["weight_global_scale"] = torch.tensor([448 * 6 / w.float().abs().max()])
            state["weight_scale"] = (scale * state["weight_global_scale"]).to(torch.float8_e4m3fn).float()
        elif form.startswith("mxfp4"):
            state["weight_scale"] = torch.exp2(torch.log2(scale).ceil()).to(torch.bfloat16)
        else:
            state["weight_scale"] = scale.to(w.dtype)
        packed = compressor.compress(dict(state), scheme)
        values = compressor.decompress(dict(packed), scheme)["weight"]
        if by_reference:
            codes = compressor.decompress({**packed, "weight_scale": torch.ones_like(state["weight_scale"], dtype=torch.float32)}, scheme)["weight"]
            scale = state["weight_scale"].float()
            sizes = [w.shape[dim] // scale.shape[dim] for dim in range(2)]
            values = codes.float() * blocks(scale, sizes, w.shape)
        return {f".{name}": value.contiguous() for name, value in packed.items()}, values.float()
    return pack


def four_bits(kind, nested, blocksize=64, dtype=None):
    def pack(w):
        values, state = bnb.quantize_4bit(w.to(dtype or w.dtype), blocksize=blocksize, compress_statistics=nested, quant_type=kind)
        parts = {f".weight.{name}": value for name, value in state.as_dict(packed=True).items()}
        return {".weight": values, **parts}, bnb.dequantize_4bit(values, state).float()
    return pack


def int8(w):
    values, scale, _ = bnb.int8_vectorwise_quant(w.to(torch.float16))
    return {".weight": values, ".SCB": scale, ".weight_format": torch.tensor(0, dtype=torch.uint8)}, bnb.int8_vectorwise_dequant(values, scale)


def nearest_e2m1(values):
    return (values.unsqueeze(-1) - E2M1).abs().argmin(-1)


def nvfp4(w):
    """ModelOpt's: scales of groups times the scale of the tensor, then times the value."""
    grouped = w.float().reshape(w.shape[0], -1, 16)
    whole = grouped.abs().max() / (448 * 6)
    scale = (grouped.abs().amax(-1) / 6 / whole).to(torch.float8_e4m3fn)
    factor = scale.float() * whole
    codes = nearest_e2m1(grouped / factor.unsqueeze(-1).clamp(min=1e-30)).reshape(w.shape)
    values = (E2M1[codes].reshape(grouped.shape) * factor.unsqueeze(-1)).reshape(w.shape)
    codes = codes.to(torch.uint8)
    return {".weight": codes[:, 0::2] | codes[:, 1::2] << 4, ".weight_scale": scale, ".weight_scale_2": whole, ".input_scale": torch.tensor(1.5)}, values


def bitnet(w):
    from transformers.integrations.bitnet import pack_weights
    inverse = (1 / w.float().abs().mean()).to(torch.bfloat16)
    digits = (w.float() * inverse.float()).round().clamp(-1, 1) + 0.0     # no negative zero
    return {".weight": pack_weights(digits.to(torch.int8)), ".weight_scale": inverse.reshape(1)}, digits / inverse.float()


def bitnet_auto(w):
    """As AutoBitLinear with quantization_mode offline unpacks it: digits times the scale."""
    from transformers.integrations.bitnet import pack_weights
    scale = w.float().abs().mean().to(torch.bfloat16)
    digits = (w.float() / scale.float()).round().clamp(-1, 1) + 0.0     # no negative zero
    return {".weight": pack_weights(digits.to(torch.int8)), ".weight_scale": scale.reshape(1)}, digits * scale.float()


def group(**weights):
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def compressed(form, by_reference, **args):
    config = {"quant_method": "compressed-tensors", "format": form, **group(**args)}
    return config, library(form, by_reference, **args)


BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}
GPTQ = {"quant_method": "gptq", "group_size": 32, "sym": False}
PACKERS = {
    "fp8-blocks": ({"quant_method": "fp8", "weight_block_size": [32, 32]}, fp8((32, 32))),
    "fp8-odd-blocks": ({"quant_method": "fp8", "weight_block_size": [40, 24]}, fp8((40, 24))),
    "fp8-tensor": ({"quant_method": "fp8", "activation_scheme": "static"}, fp8()),
    "fp8-channel": ({"quant_method": "fbgemm_fp8"}, fp8("channel", end=".weight_scale")),
    "fp8-modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, fp8(end=".weight_scale")),
    "fp8-cast": (None, cast(torch.float8_e4m3fn)),
    "fp8-cast-e5m2": (None, cast(torch.float8_e5m2)),
    "gptq-4": ({**GPTQ, "bits": 4}, gptq(4)),
    "gptq-2": ({**GPTQ, "bits": 2, "checkpoint_format": "gptq"}, gptq(2)),
    "gptq-3": ({**GPTQ, "bits": 3}, gptq(3)),
    "gptq-8-v2": ({**GPTQ, "bits": 8, "checkpoint_format": "gptq_v2"}, gptq(8, v2=True)),
    "gptq-4-act-order": ({**GPTQ, "bits": 4, "desc_act": True}, gptq(4, order=True)),
    "gptq-4-symmetric": ({**GPTQ, "bits": 4, "sym": True}, gptq(4, symmetric=True)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}, awq()),
    "ct-float-channel": compressed("float-quantized", True, num_bits=8, type="float", strategy="channel", symmetric=True),
    "ct-float-tensor": compressed("float-quantized", False, num_bits=8, type="float", strategy="tensor", symmetric=True),
    "ct-float-block": compressed("float-quantized", True, num_bits=8, type="float", strategy="block", block_structure=[16, 32], symmetric=True),
    "ct-int8-channel": compressed("int-quantized", True, num_bits=8, type="int", strategy="channel", symmetric=True),
    "ct-int8-zeros": compressed("int-quantized", False, num_bits=8, type="int", strategy="channel", symmetric=False),
    "ct-packed-group": compressed("pack-quantized", True, num_bits=4, type="int", strategy="group", group_size=32, symmetric=True),
    "ct-packed-zeros": compressed("pack-quantized", True, num_bits=4, type="int", strategy="group", group_size=32, symmetric=False),
    "ct-packed-channel": compressed("pack-quantized", False, num_bits=4, type="int", strategy="channel", symmetric=True),
    "ct-packed-3": compressed("pack-quantized", True, num_bits=3, type="int", strategy="group", group_size=32, symmetric=False),
    "ct-packed-8": compressed("pack-quantized", True, num_bits=8, type="int", strategy="group", group_size=32, symmetric=True),
    "ct-nvfp4": compressed("nvfp4-pack-quantized", False, num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True),
    "ct-mxfp4": compressed("mxfp4-pack-quantized", False, num_bits=4, type="float", strategy="group", group_size=32, symmetric=True),
    "bnb-nf4": ({**BNB4, "bnb_4bit_quant_type": "nf4"}, four_bits("nf4", False)),
    "bnb-nf4-nested": ({**BNB4, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, four_bits("nf4", True)),
    "bnb-fp4": ({**BNB4, "bnb_4bit_quant_type": "fp4"}, four_bits("fp4", False, 128)),
    "bnb-fp4-nested-f16": ({**BNB4, "bnb_4bit_quant_type": "fp4"}, four_bits("fp4", True, dtype=torch.float16)),
    "bnb-int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, int8),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4),
    "bitnet": ({"quant_method": "bitnet"}, bitnet),
    "bitnet-auto": ({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}, bitnet_auto),
}


def mxfp4(experts, outputs, inputs):
    """Random experts as gpt-oss has them, and what transformers unpacks them to."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
    blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
    scales = torch.randint(118, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
    return {"_blocks": blocks, "_scales": scales}, convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).float().contiguous()


def packed(state, pack, linear):
    """A checkpoint's tensors with those that `linear` chooses packed, and plain F32 ones for them."""
    stored, plain = {}, {}
    for name, value in state.items():
        if not linear(name):
            stored[name] = plain[name] = value
            continue
        stem = name.removesuffix(".weight")
        parts, plain[name] = pack(value)
        stored.update({stem + end: part.contiguous() for end, part in parts.items()})
    return stored, plain
