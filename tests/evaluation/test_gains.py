"""The best passage, and the questions that the filter keeps by the answer from it."""

import math
from collections import Counter

import pytest

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import FieldError
from gainRAG.evaluation.gains import (
    FilterOptions,
    as_answered,
    describe_kept,
    keep_answered,
    perplexity_of,
)


def passage(ppl: float, right: float | None = None, text: str = "x", **more) -> dict:
    stored = {} if right is None else {"EM_with_retrieval": right}
    return {"id": 1, "title": "T", "text": text, "PPL_CD": ppl, "retrieved_ppl": 100 - ppl, **stored, **more}


def question(number: int, *passages: dict) -> dict:
    return {"id": number, "question": f"Where, {number}?", "answers": ["Paris"], "passages": list(passages)}


def test_a_perplexity_is_a_finite_number_or_an_error():
    assert perplexity_of(math.log(3)) == pytest.approx(3)
    assert perplexity_of(1e9) == perplexity_of(math.inf) == math.exp(700)
    with pytest.raises(UserError, match="overflows; give a wider one, --gain_dtype float32"):
        perplexity_of(math.nan)


def test_the_best_passage_has_the_lowest_perplexity_and_the_first_of_equals_wins():
    record = question(0, passage(3, text="a"), passage(2, text="b"), passage(2, text="c"))
    assert FilterOptions().best_passage(record)["text"] == "b"
    assert FilterOptions("retrieved_ppl").best_passage(record)["text"] == "a"


def test_questions_are_kept_by_the_answer_from_their_best_passage():
    records = [
        question(0, passage(1, 1.0), passage(2, 0.0)),
        question(1, passage(1, 0.0, has_answer=True), passage(2, 1.0)),
        question(2, passage(1, 0.0)),
        question(3, passage(9, 0.0), passage(1, 1.0, is_pseudo=True)),
        question(4),
    ]
    counts = Counter()
    assert [record["id"] for record in keep_answered(records, FilterOptions("PPL_CD", "answered"), counts)] == [0, 3]
    assert describe_kept(counts) == (
        "kept 2 of 5 questions (1 kept, best passage is the LLM's own; 1 answered wrongly, best passage holds the "
        "answer; 1 answered wrongly, best passage lacks the answer; 1 without any candidate)"
    )
    by_plain = [
        record["id"] for record in keep_answered(records, FilterOptions("retrieved_ppl", "answered"), Counter())
    ]
    assert by_plain == [1]


def test_the_llms_own_passage_may_be_left_out():
    records = [
        question(0, passage(1, 0.0, is_pseudo=True), passage(2, 1.0)),
        question(1, passage(1, 1.0, is_pseudo=True), passage(2, 0.0)),
        question(2, passage(1, 1.0, is_pseudo=True)),
    ]
    counts = Counter()
    options = FilterOptions(no_pseudo=True)
    assert list(keep_answered(records, options, counts)) == records[:1]
    assert counts["without any candidate"] == 1
    assert as_answered(question(3, passage(1, is_pseudo=True), passage(2, 1.0)), options)
    with pytest.raises(FieldError, match=r"passages\[1\].EM_with_retrieval"):
        as_answered(question(3, passage(1, 1.0, is_pseudo=True), passage(2)), options)


def test_a_passage_does_not_hold_the_letter_of_an_option():
    record = {**question(0, passage(1, 0.0, has_answer=True)), "choices": {"label": ["A"], "text": ["x"]}}
    assert not list(keep_answered([record], FilterOptions(keep="answerable"), Counter()))
    assert not list(keep_answered([record], FilterOptions(keep="holds"), Counter()))


def test_answerable_keeps_those_whose_best_passage_holds_an_answer_too():
    records = [
        question(0, passage(1, 1.0), passage(2, 0.0)),
        question(1, passage(1, 0.0, has_answer=True), passage(2, 1.0)),
        question(2, passage(1, 0.0, has_answer=False), passage(2, 0.0, has_answer=True)),
    ]
    counts = Counter()
    assert [record["id"] for record in keep_answered(records, FilterOptions("PPL_CD", "answerable"), counts)] == [0, 1]
    assert describe_kept(counts) == (
        "kept 2 of 3 questions (1 kept, answered wrongly, best passage holds the answer; 1 answered wrongly, best "
        "passage lacks the answer)"
    )


def test_holds_asks_nothing_of_the_llm():
    records = [
        question(0, passage(1), passage(2, 1.0)),
        question(1, passage(1, has_answer=True), passage(2, 1.0)),
        question(2, passage(1, 1.0, has_answer=False)),
    ]
    counts, options = Counter(), FilterOptions(keep="holds")
    assert all(as_answered(record, options) for record in records)
    assert [record["id"] for record in keep_answered(records, options, counts)] == [1]
    assert describe_kept(counts) == "kept 1 of 3 questions (2 best passage lacks the answer)"
