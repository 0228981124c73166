"""Tiny random models of the families whose recurrent states fork, one of each."""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 61
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "pad_token_id": 0}
ATTENTION = {
    **SIZES,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
MAMBA = {
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
STATE_SPACE = {"chunk_size": 8, "n_groups": 1}
DELTA = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_hidden_layers": 3,
}
EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "moe_intermediate_size": 16,
}
CONVOLUTION = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
FORKING: dict[str, tuple[str, dict[str, Any]]] = {
    "bailing_hybrid": (
        "BailingHybridConfig",
        {
            **ATTENTION,
            **LATENT,
            "q_lora_rank": 16,
            "num_hidden_layers": 3,
            "layer_group_size": 3,
            "head_dim": 8,
            "num_local_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
        },
    ),
    "bamba": (
        "BambaConfig",
        {**ATTENTION, **MAMBA, "num_hidden_layers": 2, "attn_layer_indices": [1]},
    ),
    "falcon_h1": (
        "FalconH1Config",
        {**ATTENTION, **MAMBA, "num_hidden_layers": 2, "mamba_d_ssm": 64, "head_dim": 8},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            **ATTENTION,
            **MAMBA,
            "num_hidden_layers": 3,
            "layer_types": ["mamba", "attention", "mamba"],
            "shared_intermediate_size": 48,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
    ),
    "kimi_linear": (
        "KimiLinearConfig",
        {
            **ATTENTION,
            **LATENT,
            "num_hidden_layers": 3,
            "layer_types": DELTA["layer_types"],
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "num_experts": 2,
            "num_experts_per_token": 1,
            "num_shared_experts": 1,
        },
    ),
    "lfm2": ("Lfm2Config", {**ATTENTION, **CONVOLUTION}),
    "lfm2_moe": ("Lfm2MoeConfig", {**ATTENTION, **CONVOLUTION, **EXPERTS, "num_dense_layers": 1}),
    "lfm3": ("Lfm3Config", {**ATTENTION, **CONVOLUTION}),
    "mamba2": (
        "Mamba2Config",
        {
            **SIZES,
            **STATE_SPACE,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 16,
        },
    ),
    "nemotron_h": (
        "NemotronHConfig",
        {
            **ATTENTION,
            **STATE_SPACE,
            "head_dim": 8,
            "layers_block_type": ["mamba", "attention", "moe", "mamba"],
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_routed_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "olmo_hybrid": ("OlmoHybridConfig", {**ATTENTION, **DELTA, "linear_num_key_heads": 4}),
    "qwen3_5_text": ("Qwen3_5TextConfig", {**ATTENTION, **DELTA}),
    "qwen3_5_moe_text": ("Qwen3_5MoeTextConfig", {**ATTENTION, **DELTA, **EXPERTS}),
    "qwen3_next": ("Qwen3NextConfig", {**ATTENTION, **DELTA, **EXPERTS}),
}


def tiny_hybrid(name: str) -> PreTrainedModel:
    """A random model of a few layers in float32, ready for scoring."""
    config_class, sizes = FORKING[name]
    config = getattr(transformers, config_class)(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                # Larger than the usual start, so that states make a difference.
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()
