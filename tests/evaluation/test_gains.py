"""The best passage, and the questions that the filter keeps by the answer from it."""

from collections import Counter

from gainRAG.evaluation.gains import best_passage, describe_kept, keep_answered


def passage(ppl: float, right: float | None = None, text: str = "x", **more) -> dict:
    stored = {} if right is None else {"EM_with_retrieval": right}
    return {"id": 1, "title": "T", "text": text, "PPL_CD": ppl, "retrieved_ppl": 100 - ppl, **stored, **more}


def question(number: int, *passages: dict) -> dict:
    return {"id": number, "question": f"Where, {number}?", "answers": ["Paris"], "passages": list(passages)}


def test_the_best_passage_has_the_lowest_perplexity_and_the_first_of_equals_wins():
    record = question(0, passage(3, text="a"), passage(2, text="b"), passage(2, text="c"))
    assert best_passage(record)["text"] == "b"
    assert best_passage(record, "retrieved_ppl")["text"] == "a"


def test_questions_are_kept_by_the_answer_from_their_best_passage():
    records = [
        question(0, passage(1, 1.0), passage(2, 0.0)),
        question(1, passage(1, 0.0, has_answer=True), passage(2, 1.0)),
        question(2, passage(1, 0.0)),
        question(3, passage(9, 0.0), passage(1, 1.0, is_pseudo=True)),
        question(4),
    ]
    counts = Counter()
    assert [record["id"] for record in keep_answered(records, "PPL_CD", "answered", counts)] == [0, 3]
    assert describe_kept(counts) == (
        "kept 2 of 5 questions (1 kept, best passage is the LLM's own; 1 answered wrongly, best passage holds the "
        "answer; 1 answered wrongly, best passage lacks the answer; 1 without any candidate)"
    )
    by_plain = [record["id"] for record in keep_answered(records, "retrieved_ppl", "answered", Counter())]
    assert by_plain == [1]


def test_answerable_keeps_those_whose_best_passage_holds_an_answer_too():
    records = [
        question(0, passage(1, 1.0), passage(2, 0.0)),
        question(1, passage(1, 0.0, has_answer=True), passage(2, 1.0)),
        question(2, passage(1, 0.0, has_answer=False), passage(2, 0.0, has_answer=True)),
    ]
    counts = Counter()
    assert [record["id"] for record in keep_answered(records, "PPL_CD", "answerable", counts)] == [0, 1]
    assert describe_kept(counts) == (
        "kept 2 of 3 questions (1 kept, answered wrongly, best passage holds the answer; 1 answered wrongly, best "
        "passage lacks the answer)"
    )
