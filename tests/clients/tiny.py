"""Tiny models with random weights, of any class of transformers that can be made so."""
import inspect

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping

# Fields of configs by the ends of their names, and their values in a tiny model. The first end that fits counts.
SIZES = [
    (("vocab_size", "codebook_size", "num_embeddings"), 64),
    (("num_key_value_heads", "num_query_groups", "attention_groups"), 2),
    (("attention_heads", "num_heads", "n_head", "n_heads", "linear_num_key_heads", "linear_num_value_heads"), 4),
    (("head_dim", "head_size", "d_kv"), 8),
    (("hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "n_layer", "n_layers", "depth", "num_blocks"), 2),
    (("intermediate_size", "ffn_dim", "d_ff", "mlp_dim", "ffn_hidden_size", "feedforward_dim", "intermediate_dim"), 48),
    (("hidden_size", "hidden_dim", "d_model", "n_embd", "embed_dim", "encoder_dim", "projection_dim", "output_dim"), 32),
    (("q_lora_rank", "kv_lora_rank"), 16),
    (("num_experts", "n_routed_experts", "num_local_experts"), 4),
    (("num_experts_per_tok", "n_group", "topk_group", "n_shared_experts"), 1),
    (("image_size",), 32),
    (("patch_size",), 8),
    (("max_position_embeddings", "max_source_positions", "max_target_positions", "num_queries", "num_positions"), 32),
]
# Fields that list layers or stages, for which a config has the right values where they are absent.
LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "stage_names", "out_features", "out_indices", "_out_features",
         "_out_indices", "per_layer_config", "num_attention_heads_per_layer", "_attn_implementation_internal")
# The most parameters of a model that is made.
LARGEST = 3e7
# Fields of other values, by `model_type` of the class.
RESNET = {"model_type": "resnet", "hidden_sizes": [8, 8, 16, 16], "embedding_size": 8, "depths": [1, 1, 1, 1], "out_features": ["stage2", "stage3", "stage4"]}
DETR = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_kwargs": None, "backbone_config": RESNET}
ONE_OF_RESNET = DETR | {"backbone_config": RESNET | {"out_features": ["stage4"]}}
FIELDS = {
    "detr": ONE_OF_RESNET,
    "conditional_detr": ONE_OF_RESNET,
    "table-transformer": ONE_OF_RESNET,
    "dab-detr": ONE_OF_RESNET,
    "deformable_detr": DETR | {"num_feature_levels": 4},
}


def shrink(config):
    """The fields of a config with the values of a tiny model, also inside the configs that it contains."""
    for field, value in list(config.items()):
        if field in LISTS:
            del config[field]
        elif isinstance(value, dict) and field not in ("rope_parameters", "rope_scaling", "id2label", "label2id"):
            shrink(value)
        elif field.endswith("_token_id") or field.endswith("token_index"):
            config[field] = 1 if isinstance(value, int) else value
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for ends, size in SIZES if field.endswith(ends)), None)
            config[field] = value if size is None or value == 0 else min(size, value)
    return config


def put(config, fields):
    """Sets fields, by the name or by a path with dots; None takes one away."""
    for path, value in fields.items():
        *outer, last = path.split(".")
        inner = config
        for part in outer:
            inner = inner.setdefault(part, {})
        if value is None:
            inner.pop(last, None)
        else:
            inner[last] = value


class TinyModel:
    """A tiny model of a class: its config first, for what it is like."""

    def __init__(self, cls):
        fields = FIELDS.get(cls.config_class.model_type, {})
        config = shrink(cls.config_class().to_dict())
        put(config, fields)
        self.cls, self.config = cls, cls.config_class.from_dict(config)

    def empty(self):
        with torch.device("meta"):
            return self.cls(self.config)

    def model(self):
        count = sum(p.numel() for p in self.empty().parameters())
        if count > LARGEST:
            raise ValueError(f"it has {count} parameters")
        model = self.cls(self.config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.normal_(0, 0.1)
        return model


def is_converted(cls):
    """Whether the class's checkpoints have other names or parts; None where no model of it can be made."""
    try:
        model = TinyModel(cls).empty()
    except Exception:
        try:
            with torch.device("meta"):
                model = cls(cls.config_class())
        except Exception:
            return None
    return bool(get_model_conversion_mapping(model, add_legacy=False))


def chosen(names):
    """The classes of these names, or those with a conversion: by name."""
    for name in names or sorted(dir(transformers)):
        if name.startswith("_") or name.endswith("PreTrainedModel") or "Auto" in name:
            continue
        found = getattr(transformers, name, None)
        if not inspect.isclass(found) or not issubclass(found, transformers.PreTrainedModel) or not found.config_class:
            continue
        if names or is_converted(found) is not False:
            yield found
