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
STAGES = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")
LISTS = STAGES + ("layer_types", "mlp_layer_types", "layers_block_type", "per_layer_config", "num_attention_heads_per_layer", "kv_source_layers")
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
    "aria": {"projector_patch_to_query_dict": {"16": 4}, "text_config.moe_num_experts": 4},
    "cosmos3_edge": {"text_config.rope_parameters.mrope_section": [2, 1, 1], "projector_hidden_size": 32},
    "deepseek_ocr2": {"text_config.first_k_dense_replace": 1, "text_config.mlp_layer_types": ["dense", "sparse"], "text_config.moe_intermediate_size": 16,
                      "text_config.topk_group": 1, "text_config.n_group": 1, "text_config.num_experts_per_tok": 2,
                      "vision_config.sam_config.output_channels": 16, "vision_config.sam_config.downsample_channels": [16, 32],
                      "vision_config.sam_config.global_attn_indexes": [1]},
    "emu3": {"vocabulary_map": {"<image>": 3}, "vq_config.base_channels": 32, "vq_config.channel_multiplier": [1, 1]},
    "ernie4_5_vl_moe": {"text_config.moe_intermediate_size": [48, 16], "text_config.moe_num_experts": 4},
    "glm5_next": {"text_config.num_key_value_heads": 4, "text_config.linear_num_heads": 4, "text_config.linear_head_dim": 8, "text_config.head_dim": 0},
    "glm5_next_text": {"num_key_value_heads": 4, "linear_num_heads": 4, "linear_head_dim": 8},
    "gradium_phonon_tts": {"flow_head_config.condition_dim": 32, "head_dim": 8, "num_key_value_heads": 4},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "hunyuan_vl": {"text_config.head_dim": 8, "text_config.num_key_value_heads": 4, "vision_config.num_key_value_heads": 4, "vision_config.max_image_size": 64},
    "hunyuan_vl_text": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lw_detr": {"backbone_config.num_windows": 4, "backbone_config.num_windows_side": 2, "backbone_config.window_block_indices": [0],
                "backbone_config.out_indices": [1, 2], "backbone_config.image_size": 32, "projector_scale_factors": [1.0]},
    "dinov2_with_registers": {"use_swiglu_ffn": True},
    "tipsv2_vision_model": {"use_swiglu_ffn": True},
    "mimi": {"upsample_groups": 32, "num_filters": 4, "codebook_dim": 16, "vector_quantization_hidden_dimension": 16},
    "mimi_decoder": {"upsample_groups": 32, "num_filters": 4},
    "mistral_large4": {"text_config.num_key_value_heads": 4, "text_config.qk_head_dim": 16},
    "mistral_large4_text": {"num_key_value_heads": 4},
    "molmo2": {"adapter_config.vision_feature_layer": [-1, -2], "text_config.head_dim": 8, "adapter_config.head_dim": 8, "vision_config.head_dim": 8,
               "adapter_config.text_hidden_size": 32, "adapter_config.num_key_value_heads": 4, "vision_config.num_key_value_heads": 4},
    "dots3_note": {"text_config.num_key_value_heads": 4, "audio_config.num_key_value_heads": 4, "audio_config.adapter_input_size": 32,
                   "audio_config.adapter_out_dim": 32, "vision_config.adapter_in_dim": 32, "vision_config.adapter_out_dim": 32,
                   "audio_config.downsample_hidden_size": 16},
    "dots3_note_text": {"num_key_value_heads": 4},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "num_key_value_heads": 4, "downsample_hidden_size": 16},
    "vibevoice_asr": {"acoustic_tokenizer_encoder_config.num_filters": 2, "semantic_tokenizer_encoder_config.num_filters": 2},
}


def shrink(config):
    """The fields of a config with the values of a tiny model, also inside the configs that it contains."""
    for field, value in list(config.items()):
        if not isinstance(field, str):
            continue
        # The names of stages of a model with layers depend on their number; others name their stages themselves.
        if field in LISTS and not (field in STAGES and "num_hidden_layers" not in config):
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
        try:
            model.get_input_embeddings()
        except NotImplementedError:
            # PEFT asks every class for them.
            self.cls.get_input_embeddings = lambda _: torch.nn.Embedding(1, 1)
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
