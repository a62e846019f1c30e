"""The shapes of the records that stages exchange (data/README.md): each `as_...` checks one record and returns it."""

import sys
from collections.abc import Callable
from typing import Any

from gainRAG.common.jsonl import FieldError, Record

LARGEST = sys.float_info.max  # JSON admits longer whole numbers, which no float holds


def as_question(record: Record) -> Record:
    """`id`, `question`, `answers`; also reads `golden_answers` and `answer` (FlashRAG, NQ-open) as answers.

    Raises:
        FieldError: a field is missing, of another type, or empty.
    """
    _text(record, "question")
    answers = next((record[name] for name in ("answers", "golden_answers", "answer") if name in record), None)
    if answers is None:
        raise FieldError("answers", "missing; wanted a list of gold answers (or 'golden_answers', 'answer')")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers:
        raise FieldError("answers", "wanted a list of at least one gold answer")
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            raise FieldError("answers", f"{answer!r:.80} is not a gold answer; wanted text that is not empty")
    if record.get("choices"):
        _choices(record["choices"])
    return {**record, "answers": answers}


def as_retrieved(record: Record) -> Record:
    """A question with its `ctxs`: `[{id, title, text, score, hasanswer}]`, best first."""
    record = as_question(record)
    _list(record, "ctxs")
    for rank, passage in enumerate(record["ctxs"]):
        _passage(passage, f"ctxs[{rank}]")
    return record


def as_supervised(record: Record, signal: str | None = None) -> Record:
    """A question with its `passages`.

    Args:
        signal: the perplexity that every passage must have, `PPL_CD` or `retrieved_ppl`.
    """
    record = as_question(record)
    _list(record, "passages")
    for rank, passage in enumerate(record["passages"]):
        where = f"passages[{rank}]"
        _passage(passage, where)
        if signal and signal not in passage:
            raise FieldError(f"{where}.{signal}", "missing; llm_supervision.construct_hf writes it")
        for name in ("PPL_CD", "retrieved_ppl"):
            if name in passage:
                _finite(passage[name], f"{where}.{name}")
                if passage[name] < 0:
                    raise FieldError(f"{where}.{name}", f"{passage[name]!r} is below 0, no perplexity is")
    return record


def as_training_group(record: Record) -> Record:
    """FlagEmbedding's distillation format: `query, pos, neg, pos_scores, neg_scores`."""
    _text(record, "query")
    for texts, scores in (("pos", "pos_scores"), ("neg", "neg_scores")):
        _list(record, texts)
        _list(record, scores)
        if not record[texts]:
            raise FieldError(texts, "empty; wanted at least one passage")
        if len(record[texts]) != len(record[scores]):
            raise FieldError(scores, f"{len(record[scores])} scores for {len(record[texts])} passages in '{texts}'")
        for position, text in enumerate(record[texts]):
            if not isinstance(text, str):
                raise FieldError(f"{texts}[{position}]", f"{text!r} is not text")
        for position, score in enumerate(record[scores]):
            _finite(score, f"{scores}[{position}]")
    return record


def as_prediction(record: Record) -> Record:
    """A line of generation output: `question`, `answers`, `prediction`, and `cover_em` and `f1` from 0 to 1."""
    for name, kind in (("question", str), ("prediction", str), ("answers", list)):
        if not isinstance(record.get(name), kind):
            raise FieldError(name, f"missing, or no {kind.__name__}; rag_generation writes it")
    for name in ("cover_em", "f1"):
        score = record.get(name)
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise FieldError(name, f"{score!r} is not a score from 0 to 1; rag_generation writes it")
    return record


def with_unique_ids(shape: Callable[[Record], Record]) -> Callable[[Record], Record]:
    """`shape` for one pass over one file whose records are found by `id`, a text or a number: none may occur twice."""
    seen: set[str] = set()

    def unique(record: Record) -> Record:
        record = shape(record)
        name = record.get("id")
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise FieldError("id", "missing, or neither text nor a number")
        if str(name) in seen:
            raise FieldError("id", f"{name!r:.80} is there twice; ids must differ")
        seen.add(str(name))
        return record

    return unique


def passage_text(passage: Record) -> str:
    """What a cross-encoder reads of a passage: its title, a line break, its text (the text alone if untitled)."""
    title = passage.get("title") or ""
    return f"{title}\n{passage['text']}" if title else passage["text"]


def _text(record: Record, field: str) -> None:
    if field not in record:
        raise FieldError(field, "missing")
    if not isinstance(record[field], str) or not record[field].strip():
        raise FieldError(field, f"{record[field]!r:.80} is not text, or empty")


def _list(record: Record, field: str) -> None:
    if field not in record:
        raise FieldError(field, "missing")
    if not isinstance(record[field], list):
        raise FieldError(field, f"wanted a list, found {type(record[field]).__name__}")


def _passage(passage: Any, where: str) -> None:
    if not isinstance(passage, dict) or not isinstance(passage.get("text"), str):
        raise FieldError(where, "wanted an object with 'text' (and 'title')")
    if not isinstance(passage.get("title", ""), str | None):
        raise FieldError(f"{where}.title", "is not text")
    score = passage.get("score")
    if isinstance(score, int | float):
        _finite(score, f"{where}.score")


def _choices(choices: Any) -> None:
    columns = [choices.get("label"), choices.get("text")] if isinstance(choices, dict) else [None, None]
    if not all(isinstance(column, list) for column in columns) or len(columns[0]) != len(columns[1]):
        raise FieldError("choices", "wanted an object with the lists 'label' and 'text', equally long")
    for label in columns[0]:
        if not isinstance(label, str) or not label.strip():
            raise FieldError("choices.label", f"{label!r:.80} is not text, or empty")


def _finite(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise FieldError(where, f"{value!r:.80} is not a finite number")
