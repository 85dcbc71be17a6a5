"""Writes a random Llama of a chosen size, in bf16 shards, with the demo's tokenizer: something to measure on.

    python benches/make_model.py OUT_DIR [--layers 24] [--hidden 1024] [--vocab 32000] [--shards 25]

Needs numpy alone. The weights are normal with standard deviation 0.02; the defaults make 0.35 billion.
"""
import argparse
import json
import shutil
from pathlib import Path

import numpy as np

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out", type=Path)
parser.add_argument("--layers", type=int, default=24)
parser.add_argument("--hidden", type=int, default=1024)
parser.add_argument("--vocab", type=int, default=32000)
parser.add_argument("--shards", type=int, default=25)
args = parser.parse_args()
hidden, inner, heads, kv, dim = args.hidden, args.hidden * 11 // 4, args.hidden // 64, args.hidden // 128, 64
args.out.mkdir(parents=True)
base = Path(__file__).parent.parent / "fixtures/demo/base"
for name in ["tokenizer.json", "tokenizer_config.json"]:
    shutil.copy(base / name, args.out / name)
(args.out / "config.json").write_text(json.dumps({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
    "num_hidden_layers": args.layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": dim,
    "vocab_size": args.vocab, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "dtype": "bfloat16", "eos_token_id": 382}, indent=2))

shapes = {"model.embed_tokens.weight": (args.vocab, hidden), "lm_head.weight": (args.vocab, hidden), "model.norm.weight": (hidden,)}
for i in range(args.layers):
    p = f"model.layers.{i}."
    for name, rows, cols in [("self_attn.q_proj", heads * dim, hidden), ("self_attn.k_proj", kv * dim, hidden),
                             ("self_attn.v_proj", kv * dim, hidden), ("self_attn.o_proj", hidden, heads * dim),
                             ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden), ("mlp.down_proj", hidden, inner)]:
        shapes[f"{p}{name}.weight"] = (rows, cols)
    shapes[f"{p}input_layernorm.weight"] = shapes[f"{p}post_attention_layernorm.weight"] = (hidden,)
rng, weight_map, names = np.random.default_rng(0), {}, sorted(shapes)
for s, part in enumerate(np.array_split(np.array(names, dtype=object), args.shards)):
    file, header, offset = f"model-{s + 1:05}-of-{args.shards:05}.safetensors", {}, 0
    for name in part:
        size = 2 * int(np.prod(shapes[name]))
        header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [offset, offset + size]}
        offset, weight_map[name] = offset + size, file
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(args.out / file, "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        for name in part:
            values = np.ones(shapes[name], np.float32) if name.endswith("norm.weight") else rng.standard_normal(shapes[name], np.float32) * 0.02
            f.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
(args.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
