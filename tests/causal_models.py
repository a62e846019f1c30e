"""Tiny causal LMs of many architectures, with random weights."""

import torch

COMMON = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**COMMON, "num_key_value_heads": 2}
SIZES = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "mistral": {**GROUPED, "sliding_window": None},
    "olmo2": GROUPED,
    "phi3": {**GROUPED, "pad_token_id": 0},
    "gpt_neox": COMMON,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "mistral-window": {**GROUPED, "sliding_window": 12},
    "gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 12, "final_logit_softcapping": 2.0},
    "cohere": {**GROUPED, "logit_scale": 0.25},
    "granite": {**GROUPED, "logits_scaling": 4.0},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
}


def make_causal_lm(vocabulary: int, kind: str, attention: str | None = None, **changes):
    """A model of a kind in SIZES, with logits far enough apart to tell tokens from each other."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "max_position_embeddings": 512, "initializer_range": 0.2}
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(kind.split("-")[0], **{**sizes, **special, **SIZES[kind], **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
