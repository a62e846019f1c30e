"""The shapes of records: what each admits, and how it names what it refuses."""

import pytest
from conftest import each

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import FieldError, read_records
from gainRAG.common.schemas import (
    as_question,
    as_retrieved,
    as_supervised,
    as_training_group,
    passage_text,
    split_contents,
    with_unique_ids,
)

QUESTION = {"id": "q1", "question": "Where?", "answers": ["Paris"]}
GROUP = {"query": "Where?", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [-0.5], "neg_scores": [-1, -2.5]}


def retrieved(**passage) -> dict:
    return {**QUESTION, "ctxs": [{"id": 1, "title": "t", "text": "x", "score": 1.5}, {"text": "y", **passage}]}


def supervised(**passage) -> dict:
    return {**QUESTION, "passages": [{"text": "x", "PPL_CD": 2.0}, {"text": "y", "PPL_CD": 3.0, **passage}]}


@each("name", ["answers", "golden_answers", "answer"])
def test_gold_answers_have_three_names(name):
    record = {"question": "Where?", name: ["Paris", "Lutetia"], "level": {"hard": 1}}
    assert as_question(record) == {**record, "answers": ["Paris", "Lutetia"]}
    assert as_question({"question": "Where?", name: "Paris"})["answers"] == ["Paris"]


@each(
    ("shape", "record", "problem"),
    [
        (as_question, {"answers": ["a"]}, "field 'question': missing"),
        (as_question, {"question": "  ", "answers": ["a"]}, "field 'question'.*empty"),
        (as_question, {"question": 5, "answers": ["a"]}, "field 'question': 5 is not text"),
        (as_question, {"question": "q"}, "field 'answers': missing.*golden_answers"),
        (as_question, {"question": "q", "answers": []}, "field 'answers'.*at least one"),
        (as_question, {"question": "q", "answers": ["a", " "]}, "field 'answers': ' ' is not a gold answer"),
        (as_question, {"question": "q", "answers": ["a", 3]}, "field 'answers': 3 is not a gold answer"),
        (as_question, {"question": "q", "answers": {"a": 1}}, "field 'answers': wanted a list"),
        (as_question, {**QUESTION, "choices": ["x", 5]}, "field 'choices': wanted the lists 'label' and 'text'"),
        (as_question, {**QUESTION, "choices": [{"text": "x"}]}, "field 'choices.label': None is not text"),
        (
            as_question,
            {"question": "q", "answer": "a", "answer_aliases": {"a": 1}},
            "field 'answer_aliases': wanted a list",
        ),
        (as_question, {**QUESTION, "choices": {"label": ["A"], "text": []}}, "field 'choices'.*equally long"),
        (as_retrieved, QUESTION, "field 'ctxs': missing"),
        (as_retrieved, {**QUESTION, "ctxs": {}}, "field 'ctxs': wanted a list, found dict"),
        (as_retrieved, retrieved(text=None), r"field 'ctxs\[1\]': wanted an object with 'text'"),
        (as_retrieved, {**QUESTION, "ctxs": ["x"]}, r"field 'ctxs\[0\]'"),
        (as_retrieved, retrieved(title=7), r"field 'ctxs\[1\].title'"),
        (as_retrieved, retrieved(score=float("nan")), r"field 'ctxs\[1\].score': nan is not a finite number"),
        (as_retrieved, retrieved(id="1"), r"field 'ctxs\[1\].id': '1' is there twice, also in ctxs\[0\]; keep one"),
        (as_supervised, QUESTION, "field 'passages': missing"),
        (as_supervised, supervised(PPL_CD=float("inf")), r"field 'passages\[1\].PPL_CD': inf"),
        (as_supervised, supervised(PPL_CD="2"), r"field 'passages\[1\].PPL_CD': '2' is not a finite number"),
        (as_supervised, supervised(PPL_CD=True), r"field 'passages\[1\].PPL_CD': True"),
        (as_supervised, supervised(retrieved_ppl=-3), r"field 'passages\[1\].retrieved_ppl': -3 is below 0"),
        (as_training_group, {**GROUP, "query": ""}, "field 'query'"),
        (as_training_group, {**GROUP, "neg": []}, "field 'neg_scores'|field 'neg': empty"),
        (as_training_group, {**GROUP, "neg_scores": [-1]}, "field 'neg_scores': 1 scores for 2 passages in 'neg'"),
        (as_training_group, {**GROUP, "pos": [1]}, r"field 'pos\[0\]': 1 is not text"),
        (as_training_group, {**GROUP, "neg_scores": [-1, None]}, r"field 'neg_scores\[1\]': None"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(write_jsonl, shape, record, problem):
    good = {as_question: QUESTION, as_retrieved: retrieved(), as_supervised: supervised(), as_training_group: GROUP}
    path = write_jsonl("data.jsonl", [good[shape], record])
    with pytest.raises(UserError, match=rf"data\.jsonl:2: ({problem})"):
        list(read_records(path, shape))


def test_a_signal_may_be_required():
    assert as_supervised(supervised(), "PPL_CD")["passages"][1]["PPL_CD"] == 3.0
    with pytest.raises(FieldError, match=r"passages\[0\].retrieved_ppl': missing"):
        as_supervised(supervised(), "retrieved_ppl")


def test_good_records_pass_untouched(write_jsonl):
    rows = [retrieved(extra=[1, {"a": None}], title=None, score=None), {**retrieved(score="82.1"), "ctxs": []}]
    unnamed = [
        {"text": text, **more} for text in "ab" for more in ({}, {"id": ""}, {"id": "pseudo", "is_pseudo": True})
    ]
    rows.append({**QUESTION, "ctxs": unnamed})
    assert list(read_records(write_jsonl("a.jsonl", rows), as_retrieved)) == rows
    assert list(read_records(write_jsonl("b.jsonl", [GROUP]), as_training_group)) == [GROUP]


def test_passage_text():
    assert passage_text({"title": "T", "text": "x"}) == "T\nx"
    assert passage_text({"title": None, "text": "x"}) == passage_text({"text": "x"}) == "x"


def test_ids_are_unique_where_records_are_found_by_them(write_jsonl):
    rows = [QUESTION, {**QUESTION, "id": 1}, {**QUESTION, "id": "1"}]
    with pytest.raises(UserError, match=r"a.jsonl:3: field 'id': '1' is there twice"):
        list(read_records(write_jsonl("a.jsonl", rows), with_unique_ids(as_question)))
    with pytest.raises(UserError, match=r"b.jsonl:1: field 'id': missing, or neither text nor a number"):
        list(read_records(write_jsonl("b.jsonl", [{**QUESTION, "id": True}]), with_unique_ids(as_question)))


@each(
    ("contents", "title", "text"),
    [
        ("Nile\nA river.\nIt is long.", "Nile", "A river.\nIt is long."),
        ('"Nile"\nA river.', "Nile", "A river."),
        ("The Eiffel Tower was completed in Paris in 1889.", "", "The Eiffel Tower was completed in Paris in 1889."),
        ("One line.\n", "", "One line.\n"),
        ('""Weird Al" Yankovic"\nA singer.', '"Weird Al" Yankovic', "A singer."),
        ('"Heroes" (album)\nBy Bowie.', '"Heroes" (album)', "By Bowie."),
        ('"\nx', '"', "x"),
        ("\nx", "", "x"),
    ],
)
def test_contents_are_a_title_and_a_text(contents, title, text):
    assert split_contents(contents) == (title, text)
    assert split_contents(contents, no_title=True) == ("", contents)


def test_aliases_are_gold_answers():
    record = {"question": "Where?", "answer": "Paris", "answer_aliases": ["Lutetia", "Paris", "City of Light"]}
    assert as_question(record)["answers"] == ["Paris", "Lutetia", "City of Light"]
    assert as_question({**record, "answer_aliases": []})["answers"] == ["Paris"]
    assert as_question({**record, "answers": ["Lyon"]})["answers"] == ["Lyon"]


OPTIONS = {"label": ["A", "B"], "text": ["the sea", "the sun"]}


@each(
    "choices",
    [OPTIONS, ["the sea", "the sun"], [{"label": "A", "text": "the sea"}, {"label": "B", "text": "the sun"}]],
)
@each("answers", [{"golden_answers": [1]}, {"golden_answers": ["the sun"]}, {"answerKey": "B"}])
def test_options_and_their_answers_have_one_form(choices, answers):
    record = as_question({"question": "What shines?", "choices": choices, **answers})
    assert record["choices"] == OPTIONS
    assert record["answers"] == ["B"]


def test_an_id_may_be_called_as_beir_and_hotpotqa_do():
    assert as_question({"_id": "q7", "question": "Where?", "answer": "Paris"})["id"] == "q7"
