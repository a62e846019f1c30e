import math
import random

import pytest
import torch
from conftest import causal_tokenizer

from gainRAG.llm_supervision.decoding import GainRequest, GainScorer

HEADER = "<|system|>\nAnswer the question from the passage with a few words, nothing else.<|end|>\n<|user|>\n"
TEXT = """
    Paris is the capital of France. The Nile flows through Egypt; 東京は日本の首都です. Marie Curie won the Nobel
    Prize in 1903. Ångström, Dvořák et Zoë étaient là. William Shakespeare wrote Hamlet around 1600.
"""
WORDS = TEXT.split()
ANSWERS = ["Paris", "Par", "Paris, France", "東京", "Dvořák", "1903", "the Nobel Prize", "Zoë et Ångström", "a"]
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


@pytest.fixture(scope="module")
def tokenizer():
    return causal_tokenizer()


@pytest.fixture(scope="module")
def make_model(tokenizer):
    """Makes a tiny random model of a kind in SIZES, with logits far enough apart to tell answers from each other."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(kind: str, attention: str | None = None, **changes):
        torch.manual_seed(0)
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "initializer_range": 0.2}
        special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
        config = AutoConfig.for_model(kind.split("-")[0], **{**sizes, **special, **SIZES[kind], **changes})
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()

    return make


def make_requests(count: int, seed: int = 0, header: str = HEADER) -> list[GainRequest]:
    rng = random.Random(seed)
    requests = []
    for index in range(count):
        question = " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))
        passages = [" ".join(rng.choices(WORDS, k=rng.randint(1, 25))) for _ in range(rng.randint(1, 4))]
        answers = [rng.choice(ANSWERS) for _ in range(1 + index % 9)]
        prompts = [f"{header}{passage}\n{question}<|end|>\n<|assistant|>\n" for passage in passages]
        requests.append(GainRequest(f"{header}{question}<|end|>\n<|assistant|>\n", prompts, answers))
    return requests


@torch.no_grad()
def defined_gain(model, tokenizer, alpha: float, request: GainRequest, passage_prompt: str) -> tuple[float, float]:
    """The definition as the paper writes it: a forward for each context and answer, all logits."""

    def answer_logits(prompt, answer_ids):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] + answer_ids
        return model(torch.tensor([ids])).logits[0, -len(answer_ids) - 1 : -1].float()

    contrastive, plain = [], []
    for answer in set(request.answers):
        answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        given, without = (answer_logits(prompt, answer_ids) for prompt in (passage_prompt, request.question_prompt))
        for values, logits in ((contrastive, (1 + alpha) * given - alpha * without), (plain, given)):
            log_likelihood = logits.log_softmax(dim=-1)[range(len(answer_ids)), answer_ids]
            values.append(math.exp(-log_likelihood.mean().item()))
    return min(contrastive), min(plain)


def assert_defined(model, tokenizer, requests, alpha=0.5, **options):
    found = list(GainScorer(model, tokenizer, alpha, **options).score(iter(requests)))
    assert [len(gains) for gains in found] == [len(request.passage_prompts) for request in requests]
    for request, gains in zip(requests, found, strict=True):
        for prompt, gain in zip(request.passage_prompts, gains, strict=True):
            expected = defined_gain(model, tokenizer, alpha, request, prompt)
            assert (gain.ppl_cd, gain.ppl) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", SIZES)
def test_equals_the_definition(make_model, tokenizer, kind):
    assert_defined(make_model(kind), tokenizer, make_requests(9))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral-window"])
def test_eager_attention_equals_the_definition(make_model, tokenizer, kind):
    assert_defined(make_model(kind, "eager"), tokenizer, make_requests(4))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_weights_of_the_contrast(make_model, tokenizer, alpha):
    assert_defined(make_model("llama"), tokenizer, make_requests(5), alpha)


def test_plain_perplexity_is_alpha_zero(make_model, tokenizer):
    for gains in GainScorer(make_model("llama"), tokenizer, alpha=0).score(make_requests(4)):
        assert [gain.ppl_cd for gain in gains] == pytest.approx([gain.ppl for gain in gains], rel=1e-6)


@pytest.mark.parametrize("max_batch_tokens", [1, 200, 100_000])
@pytest.mark.parametrize("header", ["", HEADER])
def test_batches_and_windows_of_any_size(make_model, tokenizer, max_batch_tokens, header):
    requests = make_requests(8, seed=1, header=header)
    assert_defined(make_model("qwen2"), tokenizer, requests, max_batch_tokens=max_batch_tokens)
