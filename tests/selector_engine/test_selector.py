"""Selector: its scores are the libraries' own, in input order, however the pairs are batched."""

import numpy as np
import pytest
import torch
from conftest import SENTENCES, cross_encoder_of

from gainRAG.common.cli import UserError
from gainRAG.selector_engine import selector as module
from gainRAG.selector_engine.selector import Selector, check_selector


@pytest.fixture(scope="module")
def selector(tiny_reranker):
    return Selector(str(tiny_reranker), device="cpu")


@pytest.fixture(scope="module")
def pairs():
    """Pairs of many lengths; the last is longer than the model's 512 positions."""
    pairs = [(SENTENCES[i % 8][: 10 + 7 * i], " ".join(SENTENCES[: 1 + i % 5]) + f" {i}") for i in range(40)]
    return [*pairs, ("What is the capital?", " ".join(SENTENCES * 9))]


def watch_batches(selector, monkeypatch):
    """A list that collects (rows, tokens a row) of each forward pass."""
    seen = []
    model = selector.model

    def watched(**inputs):
        seen.append(tuple(inputs["input_ids"].shape))
        return model(**inputs)

    monkeypatch.setattr(selector, "model", watched)
    return seen


def test_scores_equal_flagembedding(selector, pairs, tiny_reranker):
    from FlagEmbedding import FlagReranker

    whole_words = zip(SENTENCES * 5, (passage.rsplit(" ", 1)[0] for _, passage in pairs), strict=False)
    pairs = list(whole_words)
    theirs = FlagReranker(str(tiny_reranker), use_fp16=False, devices="cpu", batch_size=8).compute_score(pairs)
    np.testing.assert_allclose(selector.score(pairs), theirs, atol=1e-4)


def test_scores_equal_cross_encoder(selector, pairs, tiny_reranker):
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(str(tiny_reranker), device="cpu", activation_fn=torch.nn.Identity(), max_length=512)
    np.testing.assert_allclose(selector.score(pairs), theirs.predict(pairs), atol=1e-4)


def test_scores_tell_pairs_apart(selector, pairs):
    assert np.ptp(selector.score(pairs)) > 0.01


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_batching_changes_no_score(selector, pairs, tiny_reranker, batch_tokens):
    other = Selector(str(tiny_reranker), device="cpu", batch_tokens=batch_tokens)
    np.testing.assert_allclose(other.score(pairs), selector.score(pairs), atol=1e-5)


def test_order_is_the_input_order(selector, pairs):
    shuffled = np.random.default_rng(0).permutation(len(pairs))
    scores = selector.score(pairs)
    np.testing.assert_allclose(selector.score([pairs[i] for i in shuffled]), scores[shuffled], atol=1e-5)


def test_small_chunks_change_no_score(selector, pairs, monkeypatch):
    expected = selector.score(pairs)
    monkeypatch.setattr(module, "PAIRS_PER_CHUNK", 3)
    np.testing.assert_allclose(selector.score(pairs), expected, atol=1e-5)


def test_equal_pairs_are_computed_once(selector, pairs, monkeypatch):
    expected = selector.score(pairs[:3])
    seen = watch_batches(selector, monkeypatch)
    scores = selector.score([*pairs[:3], *pairs[:3], pairs[0]])
    assert sum(rows for rows, _ in seen) == 3
    assert scores.tobytes() == np.concatenate([expected, expected, expected[:1]]).tobytes()


def test_batches_keep_to_the_budget_and_sort_by_length(tiny_reranker, pairs, monkeypatch):
    selector = Selector(str(tiny_reranker), device="cpu", batch_tokens=600)
    sizes = watch_batches(selector, monkeypatch)
    selector.score(pairs)
    assert sum(rows for rows, _ in sizes) == len(set(pairs))
    assert all(rows == 1 or rows * width <= 600 for rows, width in sizes)
    assert [width for _, width in sizes] == sorted((width for _, width in sizes), reverse=True)
    assert len(sizes) < len(pairs)


def test_tokens_are_those_of_the_plain_tokenizer_call(selector, pairs):
    encodings = selector._encode(pairs)
    for (question, passage), encoding in zip(pairs, encodings, strict=True):
        plain = selector.tokenizer(question, passage, truncation="only_second", max_length=512)
        assert encoding.ids == plain["input_ids"]


def test_token_types_reach_a_bert_model(tiny_encoder, tmp_path, pairs):
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=1).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path)
    theirs = CrossEncoder(str(tmp_path), device="cpu", activation_fn=torch.nn.Identity(), max_length=64)
    ours = Selector(str(tmp_path), device="cpu", max_length=64).score(pairs)
    np.testing.assert_allclose(ours, theirs.predict(pairs), atol=1e-4)


def test_only_the_passage_is_cut(tiny_reranker):
    selector = Selector(str(tiny_reranker), device="cpu", max_length=32)
    question = "Who wrote the play Hamlet?"
    ids = selector._encode([(question, " ".join(SENTENCES))])[0].ids
    alone = selector.tokenizer(question)["input_ids"]
    assert len(ids) == 32
    assert ids[: len(alone)] == alone


def test_a_question_that_is_too_long_is_cut_too(tiny_reranker):
    selector = Selector(str(tiny_reranker), device="cpu", max_length=32)
    pairs = [(" ".join(SENTENCES), SENTENCES[0]), ("Who?", " ".join(SENTENCES))]
    cut, whole = selector._encode(pairs)
    assert len(cut.ids) == len(whole.ids) == 32
    assert cut.ids == selector.tokenizer(*pairs[0], truncation="longest_first", max_length=32)["input_ids"]
    assert whole.ids == selector.tokenizer(*pairs[1], truncation="only_second", max_length=32)["input_ids"]
    assert np.isfinite(selector.score(pairs)).all()


def test_max_length_is_clamped_to_the_positions(tiny_reranker, pairs, selector):
    clamped = Selector(str(tiny_reranker), device="cpu", max_length=1024)
    assert clamped.max_length == 512
    assert clamped.score(pairs[-1:]).tobytes() == selector.score(pairs[-1:]).tobytes()


def test_a_length_without_room_is_refused(tiny_reranker):
    with pytest.raises(UserError, match="max_length 4"):
        Selector(str(tiny_reranker), device="cpu", max_length=4)


def test_padding_asked_of_the_tokenizer_elsewhere_does_no_harm(tiny_reranker, selector, pairs):
    other = Selector(str(tiny_reranker), device="cpu")
    other.tokenizer([question for question, _ in pairs], padding=True)
    assert other.score(pairs).tobytes() == selector.score(pairs).tobytes()


def test_select_sorts_and_keeps_fields(selector):
    passages = [{"id": str(i), "title": f"t{i % 2}", "text": text} for i, text in enumerate(SENTENCES)]
    question = "What is the capital of France?"
    scores = selector.score([(question, f"{passage['title']}\n{passage['text']}") for passage in passages])
    best = selector.select(question, passages, k=3)
    assert [passage["id"] for passage in best] == [str(i) for i in np.argsort(-scores)[:3]]
    assert best[0] == {**passages[int(best[0]["id"])], "selector_score": float(scores.max())}
    assert "selector_score" not in passages[0]


def test_select_keeps_the_order_of_ties_and_takes_few_passages(selector):
    passages = [{"id": str(i), "title": "", "text": SENTENCES[0]} for i in range(4)]
    assert [passage["id"] for passage in selector.select("Where is Paris?", passages, k=9)] == ["0", "1", "2", "3"]
    assert selector.select("Where is Paris?", [], k=1) == []


def test_no_pairs_no_scores(selector):
    assert selector.score([]).shape == (0,)


def test_scores_are_float32(selector, pairs):
    assert selector.score(pairs[:2]).dtype == np.float32


def test_bfloat16_comes_close(selector, pairs, tiny_reranker):
    low = Selector(str(tiny_reranker), device="cpu", dtype="bfloat16")
    assert next(low.model.parameters()).dtype == torch.bfloat16
    np.testing.assert_allclose(low.score(pairs), selector.score(pairs), atol=0.1)


def test_out_of_memory_halves_the_budget(tiny_reranker, pairs, monkeypatch):
    pairs = pairs[:-1]
    selector = Selector(str(tiny_reranker), device="cpu")
    expected = selector.score(pairs)
    model = selector.model

    def small_device(**inputs):
        if inputs["input_ids"].numel() > 400:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(**inputs)

    monkeypatch.setattr(selector, "model", small_device)
    np.testing.assert_allclose(selector.score(pairs), expected, atol=1e-5)
    assert 1 < selector.budget.tokens <= 400


def test_one_pair_beyond_memory_is_said(tiny_reranker, pairs, monkeypatch):
    selector = Selector(str(tiny_reranker), device="cpu")

    def no_memory(**inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(selector, "model", no_memory)
    with pytest.raises(UserError, match="does not hold one pair"):
        selector.score(pairs)


def test_scores_that_are_no_numbers_are_refused(tiny_reranker, pairs):
    selector = Selector(str(tiny_reranker), device="cpu")
    with torch.no_grad():
        selector.model.classifier.out_proj.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite in float32"):
        selector.score(pairs)


@pytest.mark.parametrize("kind", ["Qwen2", "GPT2", "RoBERTa"])
def test_other_kinds_of_cross_encoders_score_as_their_models_do_alone(kind, tmp_path, pairs):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = cross_encoder_of(kind, tmp_path)
    model, tokenizer = (c.from_pretrained(folder) for c in (AutoModelForSequenceClassification, AutoTokenizer))
    selector = Selector(str(folder), device="cpu", max_length=120)
    scores = selector.score(pairs)
    np.testing.assert_allclose(selector.score(pairs[:1]), scores[:1], atol=1e-5)
    for (question, passage), score in list(zip(pairs, scores, strict=True))[:10]:
        inputs = tokenizer(question, passage, truncation="only_second", max_length=120, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        assert model(**inputs).logits.item() == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"pad_token_id": 1}, "count positions from behind padding token 1, its"), ({"vocab_size": 99}, "its weights 99")],
)
def test_a_tokenizer_of_other_weights_is_refused_before_they_load(tmp_path, changes, problem):
    with pytest.raises(UserError, match=problem):
        check_selector(str(cross_encoder_of("RoBERTa", tmp_path, **changes)))


def test_a_tokenizer_without_anything_to_pad_with_is_refused(tmp_path):
    folder = cross_encoder_of("GPT2", tmp_path)
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"eos_token": "<|endoftext|>",', ""))
    with pytest.raises(UserError, match="neither a padding token nor an end token"):
        check_selector(str(folder))


def test_scores_that_are_all_one_value_are_warned_of_once(tiny_reranker, pairs, caplog):
    selector = Selector(str(tiny_reranker), device="cpu")
    selector.score(pairs[:9])
    selector.score(pairs[:1])
    assert "one value" not in caplog.text
    with torch.no_grad():
        selector.model.classifier.out_proj.weight.zero_()
    for _ in range(2):
        selector.score(pairs[:9])
    assert caplog.text.count("all 9 scores are one value") == 1


def test_a_model_with_two_labels_is_refused(tiny_encoder):
    with pytest.raises(UserError, match="1 output label, this model has 2"):
        Selector(str(tiny_encoder), device="cpu")


def test_a_model_without_head_is_refused(tiny_encoder, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(tiny_encoder)
    model.config.num_labels = 1
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="lack classifier"):
        Selector(str(tmp_path), device="cpu")


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match="neither a model folder"):
        Selector("no-such-model", device="cpu")
    with pytest.raises(UserError, match="cannot be loaded"):
        Selector("nobody/no-such-model", device="cpu")
