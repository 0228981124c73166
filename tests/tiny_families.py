"""A tiny random model of every type in transformers' table of causal models.

The default configuration of a type says how transformers names its sizes; each name that stands in
`SIZES` is shrunk, and of its layers one of each kind is kept. What that leaves impossible for a
type stands in `EXCEPTIONS`, with the reason.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from taskfit.models.causal_model import CausalModel
from taskfit.models.multimodal import know_multimodal
from taskfit.tree import TokenTree

VOCABULARY = 433  # as many as the byte-level tokenizer has, and a few

# What a size is called, by the size that it gets.
SIZES: dict[int, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input unpadded_vocab_size",
    512: "max_position_embeddings n_positions max_seq_len n_ctx context_length "
    "model_max_length max_target_positions original_max_position_embeddings",
    64: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim dff dim_ff d_inner "
    "ffn_hidden_size feed_forward_size attention_hidden_size mamba_d_ssm intermediate_size_mlp "
    "dense_intermediate_size",
    # Many heads of an indexer, or two tokens often get the same score, 0.
    32: "index_n_heads "
    "hidden_size d_model n_embd emb_dim embedding_size lru_width moe_intermediate_size "
    "shared_expert_intermediate_size shared_experts_intermediate_size shared_intermediate_size "
    "expert_ffn_hidden_size moe_shared_expert_intermediate_size router_hidden_size "
    "word_embed_proj_dim input_embedding_size output_embedding_size embedding_dim "
    "hidden_size_per_layer_input",
    16: "q_lora_rank kv_lora_rank o_lora_rank qk_head_dim mamba_d_head mamba_head_dim "
    "mamba_headdim linear_key_head_dim linear_value_head_dim linear_head_dim v_head_dim "
    "state_size ssm_state_size mamba_d_state laurel_rank adapter_rank mamba_chunk_size chunk_size "
    "time_step_rank mamba_dt_rank index_head_dim block_size",
    8: "head_dim kv_channels dim_head d_head qk_nope_head_dim qk_rope_head_dim swa_head_dim "
    "sliding_window sliding_window_size attention_window_size attention_chunk_size window_size "
    "local_attention attention_head_size rotary_dim d_rel rel_extent index_topk num_experts "
    "n_routed_experts num_local_experts moe_num_experts keep_window_size hc_lowrank "
    "gated_norm_rank",
    4: "num_attention_heads encoder_attention_heads decoder_attention_heads attention_heads "
    "n_head n_heads num_heads mamba_n_heads mamba_num_heads n_mamba_heads swa_num_attention_heads "
    "linear_num_value_heads linear_num_heads mamba_n_groups",
    2: "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads n_groups "
    "num_experts_per_tok num_experts_per_token moe_topk moe_k topk_group n_group num_expert_group "
    "o_groups hc_mult hc_count mamba_ngroups zero_expert_num",
}
SIZE_OF = {name: size for size, names in SIZES.items() for name in names.split()}
LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_blocks",
)
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# Arguments that a type needs beside; those of a part stand in a dictionary of its own.
_NO_GROUPS = {"num_key_value_heads": 4}
_AS_DECODER = {"is_decoder": True}
_ONE_OF_EACH = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
_AXIS_BY_AXIS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_AXES = {"text_config": {"rope_parameters": _AXIS_BY_AXIS}}
_SLIDING_NOTE = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "head_dim": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_NOTE = {
    **_SLIDING_NOTE,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "mlp_layer_types": ["dense", "sparse"] * 2,
    "layer_types": ["indexed_attention"] * 2 + ["sliding_attention"] * 2,
    "index_head_dim": 16,
    "per_layer_config": {2: _SLIDING_NOTE, 3: _SLIDING_NOTE},
}
_GEMMA_3N = {  # the layers that borrow keys and values need one of each kind below them
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "intermediate_size": 64,
    "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    "num_kv_shared_layers": 2,
}
_NO_LAYER_INPUT = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
# Their windows are off by default.
_WINDOW_ABOVE = {
    "num_hidden_layers": 2,
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
}
_QWEN_4 = {
    "head_dim": 8,
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "ple_layer_ids": [1],
    "eos_token_id": 2,
    "ple_embed_dim": 32,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "axk2": _NO_GROUPS,
    "bailing_hybrid": _NO_GROUPS,
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    "blt": {
        "encoder_hash_byte_group_size": [3, 4],
        "encoder_hash_byte_group_vocab": 64,
        "patcher_config": {"num_key_value_heads": 4},
        "encoder_config": {"num_key_value_heads": 4, "hidden_size_global": 64},
        "decoder_config": {"num_key_value_heads": 4, "hidden_size_global": 64},
        "global_config": {"num_key_value_heads": 4, "hidden_size": 64},
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": _AXIS_BY_AXIS}},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "cpmant": {"prompt_length": 4, "prompt_types": 4, "segment_types": 4},
    "deepseek_v32": _NO_GROUPS,
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}
    },
    "dots1": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "dots3_note": {
        "text_config": _NOTE,
        "vision_config": {
            "adapter_in_dim": 32,
            "adapter_out_dim": 32,
            "hidden_size": 32,
            "num_attention_heads": 4,
        },
        "audio_config": {
            "adapter_input_size": 32,
            "adapter_out_dim": 32,
            "hidden_size": 32,
            "num_attention_heads": 4,
        },
    },
    "dots3_note_text": _NOTE,
    "gemma3n": {"text_config": _GEMMA_3N},
    "gemma3n_text": _GEMMA_3N,
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text", **_NO_LAYER_INPUT}},
    "glm_moe_dsa": _NO_GROUPS,
    "glm46v": _AXES,
    "glm4v": _AXES,
    "glm4v_moe": {
        "text_config": {"rope_parameters": {**_AXIS_BY_AXIS, "mrope_section": [1, 1, 0]}}
    },
    "glm_ocr": _AXES,
    "granitemoehybrid": _ONE_OF_EACH,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2},
    "inkling2_text": {"unpadded_vocab_size": VOCABULARY - 8},
    "inkling_text": {"unpadded_vocab_size": VOCABULARY - 8},
    "kimi_linear": _NO_GROUPS,
    "lfm2": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_dense_layers": 1,
    },
    "mamba2": {"hidden_size": 32, "num_heads": 4, "head_dim": 16},
    "minimax_m3_vl_text": {
        "index_block_size": 4,
        "index_topk_blocks": 1,
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "minimax_m3_sparse"],
    },
    "ministral": {"head_dim": 8},
    "mistral4": {**_NO_GROUPS, "head_dim": 16},
    "mistral_large4": {"text_config": _NO_GROUPS},
    "nemotron": {"num_key_value_heads": 2},
    "opt": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},  # the 350m shape
    "paddleocr_vl": _AXES,
    "phimoe": {"sliding_window": 8},
    "qwen2": _WINDOW_ABOVE,
    "qwen2_5_omni_thinker": _AXES,
    "qwen2_5_vl": _AXES,
    "qwen2_moe": _WINDOW_ABOVE,
    "qwen2_vl": _AXES,
    "qwen3": _WINDOW_ABOVE,
    "qwen3_moe": _WINDOW_ABOVE,
    "qwen4_exp": {"text_config": _QWEN_4},
    "qwen4_exp_text": _QWEN_4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "num_hidden_layers": 2,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 16],
        "num_buckets": 4,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "hash_seed": 0,
    },
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 16},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "rwkv": {"attention_hidden_size": 32},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},  # keys come in multiples of 64
    "zamba": {
        "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", *["linear_attention", "hybrid"] * 2],
    },
}


# Switches of types whose models can be encoders or decoders.
DECODER_SETTINGS = ("is_decoder", "causal")


def causal_types() -> list[str]:
    """Return transformers' own names of all types of causal models."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def multimodal_types() -> list[str]:
    """Return those of all types of models of images and text that are not among them."""
    return [
        kind for kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if kind not in causal_types()
    ]


def decoder_setting(model_type: str) -> str | None:
    """Return what makes decoders of a type's models, which can be encoders, or None."""
    settings = CONFIG_MAPPING[model_type](**EXCEPTIONS.get(model_type, {})).to_dict()
    return next((name for name in DECODER_SETTINGS if settings.get(name) is False), None)


def tiny_config(model_type: str, *, as_decoder: bool = False) -> PreTrainedConfig:
    """Return the configuration of a type, shrunk.

    Args:
        model_type: A type of the table.
        as_decoder: Of a type whose models can be encoders, a decoder.
    """
    config_class = CONFIG_MAPPING[model_type]
    settings = _shrunk(config_class, EXCEPTIONS.get(model_type, {}))
    if as_decoder:
        settings |= dict.fromkeys(filter(None, [decoder_setting(model_type)]), True)
    return config_class(**settings)


def tiny_family(model_type: str, *, as_decoder: bool = False, seed: int = 0) -> PreTrainedModel:
    """Return a random model of a type in float32, in evaluation mode; see `tiny_config`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = tiny_config(model_type, as_decoder=as_decoder)
        know_multimodal(config)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Larger than the usual start, so that differences between tokens are worth
                # testing; biases and the like are moved from where they start.
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
                else:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def _shrunk(config_class: type[PreTrainedConfig], exceptions: dict[str, Any]) -> dict[str, Any]:
    """Return arguments for a configuration's class that make it small."""
    default = config_class(**exceptions)
    parts = {}
    for name in default.sub_configs:
        part = getattr(default, name)
        if part is not None:
            few = _shrunk(type(part), exceptions.get(name, {}))
            parts[name] = type(part)(**few)
    settings = {key: value for key, value in default.to_dict().items() if key not in parts}
    layers = next((settings[name] for name in LAYER_COUNTS if name in settings), None)
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, bool):
            continue
        if name in TOKENS:
            found[name] = TOKENS[name]
        elif isinstance(value, int) and value > SIZE_OF.get(name, value):
            found[name] = SIZE_OF[name]
    own = {name: value for name, value in exceptions.items() if name not in parts}
    return found | _few_layers(settings, layers) | parts | own


def _few_layers(settings: dict[str, Any], number: int | None) -> dict[str, Any]:
    """Keep the first layer of each kind, and one more of the first kind."""
    if number is None:
        return {}
    lists = {
        name: value
        for name, value in settings.items()
        # One entry a layer, and not the numbers of layers.
        if isinstance(value, list) and len(value) == number and value != list(range(number))
    }
    kinds = list(zip(*(map(str, value) for value in lists.values()), strict=True))
    kept = sorted({kinds.index(kind) for kind in kinds}) if kinds else [0, 1]
    if len(kept) == 1:
        kept = [0, 1]
    found: dict[str, Any] = {
        name: [value[index] for index in kept] for name, value in lists.items()
    }
    return found | {name: len(kept) for name in LAYER_COUNTS if name in settings}


def _texts() -> list[np.ndarray]:
    """Four texts, three of one stem; longer than the windows of tiny models."""
    generator = np.random.default_rng(0)
    stem, *tails, other = (generator.integers(3, 200, n) for n in (9, 3, 12, 5))
    return [stem, *(np.concatenate((stem, tail)) for tail in tails), other]


@torch.no_grad()
def plain_scores(engine: CausalModel, texts: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Return a model's own scores of texts, one at a time, each (L, V)."""
    with engine.plain_attention() as plain:
        return [
            plain(torch.from_numpy(text)[None], use_cache=False).logits[0].float() for text in texts
        ]


@torch.no_grad()
def difference_to_plain_passes(engine: CausalModel) -> float:
    """Return the largest difference of a score at any node of a tree (standard deviations)."""
    texts = _texts()
    tree = TokenTree.build(texts)
    ours = engine.logits(engine.hidden(tree, np.arange(len(tree))))
    theirs = plain_scores(engine, texts)
    differences = [(ours[path] - one) for path, one in zip(tree.paths, theirs, strict=True)]
    return max(float(one.abs().max()) for one in differences) / float(torch.cat(theirs).std())


@torch.no_grad()
def difference_behind_a_prefix(engine: CausalModel) -> float:
    """Return the same for texts behind an encoded prefix."""
    stem, *texts, _ = _texts()
    tree = TokenTree.build([text[len(stem) :] for text in texts])
    prefix = engine.encode_prefix(stem)
    ours = engine.logits(engine.hidden(tree, np.arange(len(tree)), prefix=prefix))
    theirs = [one[len(stem) :] for one in plain_scores(engine, texts)]
    differences = [(ours[path] - one) for path, one in zip(tree.paths, theirs, strict=True)]
    return max(float(one.abs().max()) for one in differences) / float(torch.cat(theirs).std())


def idle_adapters(engine: CausalModel) -> list[str]:
    """Return the last names of layers whose adapters get no gradient in a step of training."""
    texts = _texts()
    tree = TokenTree.build(texts)
    engine.model.train()
    hidden = engine.hidden(tree, np.array([path[-1] for path in tree.paths]))
    rows = torch.arange(len(texts))
    engine.token_log_probs(hidden, rows, rows + 5).sum().backward()
    idle = {
        ".".join(name.split(".lora_B")[0].rsplit(".", 2)[-2:])
        for name, parameter in engine.model.named_parameters()
        if "lora_B" in name and (parameter.grad is None or not parameter.grad.any())
    }
    return sorted(idle)
