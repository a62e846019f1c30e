"""The shapes of the records that stages exchange (data/README.md): each `as_...` checks one record and returns it."""

import string
import sys
from collections.abc import Callable
from typing import Any, TypeGuard

from gainRAG.common.jsonl import FieldError, Record

LARGEST = sys.float_info.max  # JSON admits longer whole numbers, which no float holds


def as_question(record: Record) -> Record:
    """`id`, `question`, `answers`, and `choices` where it has options.

    Gold answers are read from `golden_answers` (FlashRAG), `answer` and its `answer_aliases` (NQ-open, MuSiQue) or
    `answerKey` (ARC) as well, an id from `_id`, options in any of the forms of `normalize_choices`.

    Raises:
        FieldError: a field is missing, of another type, or empty.
    """
    _text(record, "question")
    name = next((name for name in ("answers", "golden_answers", "answer", "answerKey") if name in record), None)
    if name is None or record[name] is None:
        raise FieldError("answers", "missing; wanted a list of gold answers (or 'golden_answers', 'answer')")
    answers = with_aliases(record) if name == "answer" else record[name]
    answers = [answers] if isinstance(answers, str) else answers
    found = {"id": record["_id"]} if "id" not in record and "_id" in record else {}
    if record.get("choices"):
        found["choices"] = normalize_choices(record["choices"])
        answers = name_options(answers, found["choices"])
    if not isinstance(answers, list) or not answers:
        raise FieldError("answers", "wanted a list of at least one gold answer")
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            raise FieldError("answers", f"{answer!r:.80} is not a gold answer; wanted text that is not empty")
    return {**record, **found, "answers": answers}


def with_aliases(record: Record) -> Any:
    """`answer`, with MuSiQue's `answer_aliases` after it."""
    answer, aliases = record["answer"], record.get("answer_aliases") or []
    aliases = [aliases] if isinstance(aliases, str) else aliases
    if not isinstance(aliases, list):
        raise FieldError("answer_aliases", f"wanted a list, found {type(aliases).__name__}")
    if not aliases:
        return answer
    answers = answer if isinstance(answer, list) else [answer]
    return answers + [alias for alias in aliases if alias not in answers]


def normalize_choices(choices: Any) -> dict[str, list[str]]:
    """A question's options as the lists `label` and `text`.

    Args:
        choices: those two lists (ARC on the hub), a list of objects with a label and a text each (ARC as its authors
            publish it), or a list of texts (FlashRAG), whose labels are A, B, ...

    Raises:
        FieldError: it is none of these.
    """
    if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
        choices = {"label": list(string.ascii_uppercase[: len(choices)]), "text": choices}
    elif isinstance(choices, list) and choices and all(isinstance(choice, dict) for choice in choices):
        choices = {column: [choice.get(column) for choice in choices] for column in ("label", "text")}
    columns: list[Any] = [choices.get("label"), choices.get("text")] if isinstance(choices, dict) else [None, None]
    if not all(isinstance(column, list) for column in columns) or len(columns[0]) != len(columns[1]):
        raise FieldError("choices", "wanted the lists 'label' and 'text', equally long, or a list of options")
    for name, column in zip(("label", "text"), columns, strict=True):
        for value in column:
            if not isinstance(value, str) or (name == "label" and not value.strip()):
                raise FieldError(f"choices.{name}", f"{value!r:.80} is not text, or empty")
    return choices


def name_options(answers: Any, choices: dict[str, list[str]]) -> Any:
    """Gold answers as the labels of options, where they are an option's position (FlashRAG, from 0) or its text."""
    labels, texts = choices["label"], choices["text"]

    def name_option(answer: Any) -> Any:
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(labels):
            return labels[answer]
        return labels[texts.index(answer)] if answer in texts and answer not in labels else answer

    answers = [answers] if isinstance(answers, int) else answers
    return list(map(name_option, answers)) if isinstance(answers, list) else answers


def as_retrieved(record: Record) -> Record:
    """A question with its `ctxs`: `[{id, title, text, score, hasanswer}]`, best first.

    Raises:
        FieldError: a field is missing or wrong, or two retrieved passages have one id.
    """
    record = as_question(record)
    _list(record, "ctxs", "; retrieval_engine.retrieval writes it")
    places: dict[str, int] = {}
    for rank, passage in enumerate(record["ctxs"]):
        _passage(passage, f"ctxs[{rank}]")
        name = passage.get("id")  # of an LLM's own passages several may have none, or the same
        if name in (None, "") or passage.get("is_pseudo"):
            continue
        if (former := places.setdefault(str(name), rank)) != rank:
            raise FieldError(
                f"ctxs[{rank}].id", f"{name!r:.80} is there twice, also in ctxs[{former}]; keep one passage"
            )
    return record


def as_supervised(record: Record, signal: str | None = None) -> Record:
    """A question with its `passages`.

    Args:
        signal: the perplexity that every passage must have, `PPL_CD` or `retrieved_ppl`.
    """
    record = as_question(record)
    _list(record, "passages", "; llm_supervision.construct_hf writes it")
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
    """A line of generation output: `question`, `answers`, `prediction`, and from 0 to 1 `cover_em`, `f1` and, where the
    task has it, `accuracy`."""
    for name, kind in (("question", str), ("prediction", str), ("answers", list)):
        if not isinstance(record.get(name), kind):
            raise FieldError(name, f"missing, or no {kind.__name__}; rag_generation writes it")
    for name in ("cover_em", "f1", *(["accuracy"] if "accuracy" in record else [])):
        require_score(record, name)
    return record


def require_score(record: Record, name: str) -> None:
    """Checks a score that rag_generation writes.

    Raises:
        FieldError: it is missing, or no number from 0 to 1.
    """
    score = record.get(name)
    if not is_number(score) or not 0 <= score <= 1:
        raise FieldError(name, f"{score!r} is not a score from 0 to 1; rag_generation writes it")


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


def split_contents(contents: str, no_title: bool = False) -> tuple[str, str]:
    """Title and text of FlashRAG's `contents`: a line with the title, in one pair of quotation marks or without, then
    the text. One line alone is a text without a title.

    Args:
        no_title: the first line is no title, all is text.
    """
    title, _, text = contents.partition("\n")
    if no_title or not text.strip():
        return "", contents
    title = title.strip()
    return title[1:-1] if len(title) > 1 and title[0] == title[-1] == '"' else title, text


def passage_text(passage: Record) -> str:
    """What a cross-encoder reads of a passage: its title, a line break, its text (the text alone if untitled)."""
    title = passage.get("title") or ""
    return f"{title}\n{passage['text']}" if title else passage["text"]


def _text(record: Record, field: str) -> None:
    if field not in record:
        raise FieldError(field, "missing")
    if not isinstance(record[field], str) or not record[field].strip():
        raise FieldError(field, f"{record[field]!r:.80} is not text, or empty")


def _list(record: Record, field: str, remedy: str = "") -> None:
    if field not in record:
        raise FieldError(field, f"missing{remedy}")
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


def _finite(value: Any, where: str) -> None:
    if not is_number(value):
        raise FieldError(where, f"{value!r:.80} is not a finite number")


def as_scored(record: Record) -> Record:
    """A selection record; every passage of it has a `selector_score`."""
    record = as_retrieved(record)
    for rank, passage in enumerate(record["ctxs"]):
        if not is_number(passage.get("selector_score")):
            raise FieldError(f"ctxs[{rank}].selector_score", "missing, or no number; selector_gainRag writes it")
    return record


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
