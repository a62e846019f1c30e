"""The published formats of question sets: how each is recognised by one record, and where its fields are."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gainRAG.common.jsonl import FieldError, Record


@dataclass(frozen=True)
class Format:
    """One published format.

    Attributes:
        looks: what a record of it holds, for messages.
        detect: whether a record is of this format.
        read: a record's (official id or None, question, list of answers).
        dataset: the only data set published in it, if so.
    """

    looks: str
    detect: Callable[[Record], bool]
    read: Callable[[Record], tuple[Any, Any, Any]]
    dataset: str | None = None


def _has(*fields: str, without: str = "") -> Callable[[Record], bool]:
    return lambda record: all(name in record for name in fields) and without not in record


def _fields(id_field: str | None, question: str, answers: str) -> Callable[[Record], tuple[Any, Any, Any]]:
    """A reader for formats with one field for each; an id that is absent stays None."""
    return lambda record: (record.get(id_field), _field(record, question), _field(record, answers))


def _field(record: Any, name: str) -> Any:
    if not isinstance(record, dict) or name not in record:
        raise FieldError(name, "missing")
    return record[name]


def _objects(record: Record, name: str) -> list[Record]:
    values = _field(record, name)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise FieldError(name, "wanted a list of objects")
    return values


def _ircot(record: Record) -> tuple[Any, Any, Any]:
    """Spans, a number or a date, as in DROP; each is one acceptable answer."""
    answers = []
    for answer in _objects(record, "answers_objects"):
        date, spans = answer.get("date") or {}, answer.get("spans") or []
        if not isinstance(date, dict) or not isinstance(spans, list):
            raise FieldError("answers_objects", "wanted 'spans' as a list and 'date' as an object")
        answers += spans
        answers.append(str(answer.get("number") or ""))
        answers.append(" ".join(str(date[part]) for part in ("day", "month", "year") if date.get(part)))
    return record.get("question_id"), _field(record, "question_text"), answers


def _webquestions(record: Record) -> tuple[Any, Any, Any]:
    """`targetValue` is `(list (description "Jamaican English") (description Patois))`."""
    target = _field(record, "targetValue")
    found = re.findall(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()"]+))\)', str(target))
    if not found:
        raise FieldError("targetValue", f"{target!r:.80} is not (list (description ...) ...)")
    return None, _field(record, "utterance"), [re.sub(r"\\(.)", r"\1", quoted) or bare for quoted, bare in found]


def _triviaqa(record: Record) -> tuple[Any, Any, Any]:
    answer = record.get("Answer") or {}  # the published test file has none
    if not isinstance(answer, dict):
        raise FieldError("Answer", "wanted an object with 'Value' and 'Aliases'")
    aliases = answer.get("Aliases") or []
    if not isinstance(aliases, list):
        raise FieldError("Answer.Aliases", "wanted a list of texts")
    answers = [answer.get("Value") or "", *aliases]
    return record.get("QuestionId"), _field(record, "Question"), answers


def _squad(record: Record) -> tuple[Any, Any, Any]:
    return record.get("id"), _field(record, "question"), [_field(a, "text") for a in _objects(record, "answers")]


def question_text(question: Any) -> str:
    """The question without outer spaces.

    Raises:
        FieldError: it is not text, or empty.
    """
    if not isinstance(question, str) or not question.strip():
        raise FieldError("question", f"{question!r:.80} is not text, or empty")
    return question.strip()


def _dpr(record: Record) -> tuple[Any, Any, Any]:
    """A question and a Python list. Only literals are read: nothing in the file can run."""
    question, literal = _field(record, "question"), _field(record, "python list")
    try:
        answers = ast.literal_eval(literal)
        "".join(answers).encode()  # refuses half of a surrogate pair, which nothing can write
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise FieldError("answers", f"{literal!r:.80} is not a Python list of texts") from None
    return None, _unquoted(question_text(question)), answers


def _unquoted(text: str) -> str:
    """TriviaQA's lines were quoted twice on publication: undoes what the CSV reader leaves."""
    return text[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', text) else text


FORMATS = {
    "2wikimultihopqa": Format(
        "a JSON list with '_id', 'question', 'answer', 'evidences'",
        _has("_id", "evidences"),
        _fields("_id", "question", "answer"),
        "2WikiMultiHopQA",
    ),
    "hotpotqa": Format(
        "a JSON list with '_id', 'question', 'answer'",
        _has("_id", "question", without="evidences"),
        _fields("_id", "question", "answer"),
        "HotpotQA",
    ),
    "ircot": Format(
        "JSON lines with 'question_id', 'question_text', 'answers_objects'", _has("answers_objects"), _ircot
    ),
    "webquestions": Format(
        "a JSON list with 'utterance', 'targetValue'", _has("targetValue"), _webquestions, "WebQuestions"
    ),
    "triviaqa": Format("an object whose 'Data' lists 'Question', 'Answer'", _has("Question"), _triviaqa, "TriviaQA"),
    "squad": Format(
        "version 1.1: an object whose 'data' lists 'paragraphs' with 'qas'",
        lambda record: isinstance(record.get("answers"), list) and all(isinstance(a, dict) for a in record["answers"]),
        _squad,
        "SQuAD",
    ),
    "flashrag": Format(
        "JSON lines with 'question', 'golden_answers'",
        _has("golden_answers"),
        _fields("id", "question", "golden_answers"),
    ),
    "nq_open": Format(
        "JSON lines with 'question', 'answer'",
        _has("question", "answer", without="_id"),
        _fields("id", "question", "answer"),
    ),
    "dpr": Format("lines of question<TAB>Python list (DPR's qas.csv)", _has("python list"), _dpr),
}
