"""The published formats of question sets: how each is recognised by one record, and where its fields are."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gainRAG.common.jsonl import FieldError, Record
from gainRAG.common.schemas import name_options, normalize_choices, with_aliases

DOCUMENTS = ("paragraphs", "context")  # too much to carry along with every question
OTHER_ANSWERS = {"answer", "golden_answers", "answerKey", "is_impossible"}  # of formats that have a `question` as well
PUBHEALTH_LABELS = ("false", "mixture", "true", "unproven")  # the hub's numbers


class Question(NamedTuple):
    """What a record holds, not yet checked.

    Attributes:
        id: the official one, or None.
        answers: gold answers, a list or one alone.
        extra: fields that are passed on, `choices` among them.
    """

    id: Any
    text: Any
    answers: Any
    extra: Record = {}


@dataclass(frozen=True)
class Format:
    """One published format.

    Attributes:
        looks: what a record of it holds, for messages.
        detect: whether a record is of this format.
        read: the question in a record.
        dataset: the only data set published in it, if so.
        unanswered: what to do about questions without answers, for the message.
    """

    looks: str
    detect: Callable[[Record], bool]
    read: Callable[[Record], Question]
    dataset: str | None = None
    unanswered: str = ""


def _has(*fields: str, without: str = "") -> Callable[[Record], bool]:
    return lambda record: all(name in record for name in fields) and without not in record


def _field(record: Any, name: str) -> Any:
    if not isinstance(record, dict) or name not in record:
        raise FieldError(name, "missing")
    return record[name]


def _objects(record: Record, name: str) -> list[Record]:
    values = _field(record, name)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise FieldError(name, "wanted a list of objects")
    return values


def _fields(id_field: str | None, question: str, answers: str) -> Callable[[Record], Question]:
    """A reader for formats with one field for each; an id that is absent stays None."""
    return lambda record: Question(id_field and record.get(id_field), _field(record, question), _field(record, answers))


def _flashrag(record: Record) -> Question:
    return _with_choices(
        _fields("id", "question", "golden_answers")(record), record, "id", "question", "golden_answers"
    )


def _own(record: Record) -> Question:
    name = "id" if record.get("id") is not None else "_id"
    record = {**record, "answers": []} if _lacks_answers(record) else record
    return _with_choices(_fields(name, "question", "answers")(record), record, "id", "_id", "question", "answers")


def _is_own(record: Record) -> bool:
    answers = record.get("answers")
    texts = answers if isinstance(answers, list) else [answers]
    if texts and all(isinstance(text, str) for text in texts):
        return "question" in record
    others = answers is None or any(isinstance(text, dict) for text in texts) or record.keys() & OTHER_ANSWERS
    return "question" in record and not others


def _lacks_answers(record: Record) -> bool:
    """A question that has answers in no field: it can be of the own format, and does not tell what its file is of."""
    unanswered = record.get("answers") is None and not record.keys() & OTHER_ANSWERS
    return unanswered and isinstance(record.get("question"), str)


def _beir(record: Record) -> Question:
    """A query; gold answers, which few sets have, lie in the record or its `metadata`."""
    metadata = record.get("metadata") or {}
    places = [record, metadata] if isinstance(metadata, dict) else [record]
    found = [place[name] for place in places for name in ("answers", "answer", "golden_answers") if place.get(name)]
    extra = {field: value for field, value in record.items() if field not in ("_id", "text", "answer", "answers")}
    return Question(record["_id"], record["text"], found[0] if found else [], extra)


def _nq_open(record: Record) -> Question:
    _field(record, "answer")
    question = Question(record.get("id"), _field(record, "question"), with_aliases(record))
    return _with_choices(question, record, "id", "question", "answer", "answer_aliases", *DOCUMENTS)


def _arc(record: Record) -> Question:
    """As the hub has it (`question`, `choices`), or its authors (`question.stem`, `question.choices`)."""
    key, question = record.get("answerKey") or "", _field(record, "question")
    if isinstance(question, dict):
        record = {**record, "question": _field(question, "stem"), "choices": _field(question, "choices")}
    question = Question(record.get("id"), record["question"], key)
    return _with_choices(question, record, "id", "question", "answerKey")


def _with_choices(question: Question, record: Record, *read: str) -> Question:
    """The question with the fields that are not among those `read`; options in one form, answers as their labels."""
    extra = {field: value for field, value in record.items() if field not in read}
    choices = extra.get("choices")
    if not choices and isinstance(extra.get("metadata"), dict):
        choices = extra["metadata"].get("choices")
    if not choices:
        return question._replace(extra=extra)
    extra["choices"] = normalize_choices(choices)
    answers = [question.answers] if isinstance(question.answers, str) else question.answers
    return question._replace(answers=name_options(answers, extra["choices"]), extra=extra)


def _pubhealth(record: Record) -> Question:
    """A claim is true or false; one that is unproven or a mixture has no answer in this task."""
    label = _field(record, "label")
    if isinstance(label, int) and not isinstance(label, bool):
        label = dict(enumerate(PUBHEALTH_LABELS)).get(label, "")
    answer = str(label).strip().lower()
    read = ("id", "claim_id", "claim", "label", "main_text")
    extra = {field: value for field, value in record.items() if field and field not in read}
    identity = record.get("claim_id", record.get("id"))
    return Question(identity, _field(record, "claim"), [answer] if answer in ("true", "false") else [], extra)


def _kilt(record: Record) -> Question:
    answers = [output["answer"] for output in _objects(record, "output") if output.get("answer") is not None]
    extra = {field: value for field, value in record.items() if field not in ("id", "input", "output")}
    return Question(record.get("id"), _field(record, "input"), answers, extra)


def _natural_questions(record: Record) -> Question:
    """Google's own files: a short answer is a span of the page's tokens, [start, end), or yes or no."""
    if "document_tokens" in record:
        tokens = list(map(_page_token, _objects(record, "document_tokens")))
    else:
        tokens = str(_field(record, "document_text")).split(" ")
    answers = []
    for annotation in _objects(record, "annotations"):
        for span in _objects(annotation, "short_answers"):
            start, end = span.get("start_token"), span.get("end_token")
            if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start <= end <= len(tokens):
                raise FieldError("annotations.short_answers", f"{start!r:.20}-{end!r:.20} are no tokens of the page")
            answers.append(" ".join(token for token in tokens[start:end] if not re.fullmatch(r"<[^<>]+>", token)))
        if annotation.get("yes_no_answer") in ("YES", "NO"):
            answers.append(annotation["yes_no_answer"].lower())
    return Question(record.get("example_id"), _field(record, "question_text"), answers)


def _page_token(token: Record) -> str:
    return "<html>" if token.get("html_token") else str(token.get("token"))


def _ircot(record: Record) -> Question:
    """Spans, a number or a date, as in DROP; each is one acceptable answer."""
    answers = []
    for answer in _objects(record, "answers_objects"):
        date, spans = answer.get("date") or {}, answer.get("spans") or []
        if not isinstance(date, dict) or not isinstance(spans, list):
            raise FieldError("answers_objects", "wanted 'spans' as a list and 'date' as an object")
        answers += spans
        answers.append(str(answer.get("number") or ""))
        answers.append(" ".join(str(date[part]) for part in ("day", "month", "year") if date.get(part)))
    return Question(record.get("question_id"), _field(record, "question_text"), answers)


def _webquestions(record: Record) -> Question:
    """`targetValue` is `(list (description "Jamaican English") (description Patois))`."""
    target = _field(record, "targetValue")
    found = re.findall(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()"]+))\)', str(target))
    if not found:
        raise FieldError("targetValue", f"{target!r:.80} is not (list (description ...) ...)")
    return Question(
        None, _field(record, "utterance"), [re.sub(r"\\(.)", r"\1", quoted) or bare for quoted, bare in found]
    )


def _triviaqa(record: Record) -> Question:
    answer = record.get("Answer") or {}  # the published test file has none
    if not isinstance(answer, dict):
        raise FieldError("Answer", "wanted an object with 'Value' and 'Aliases'")
    aliases = answer.get("Aliases") or []
    if not isinstance(aliases, list):
        raise FieldError("Answer.Aliases", "wanted a list of texts")
    answers = [answer.get("Value") or "", *aliases]
    return Question(record.get("QuestionId"), _field(record, "Question"), answers)


def _squad(record: Record) -> Question:
    answers = [_field(answer, "text") for answer in _objects(record, "answers")]
    return Question(record.get("id"), _field(record, "question"), answers)


def question_text(question: Any) -> str:
    """The question without outer spaces.

    Raises:
        FieldError: it is not text, or empty.
    """
    if not isinstance(question, str) or not question.strip():
        raise FieldError("question", f"{question!r:.80} is not text, or empty")
    return question.strip()


def _dpr(record: Record) -> Question:
    """A question and a Python list. Only literals are read: nothing in the file can run."""
    question, literal = _field(record, "question"), _field(record, "python list")
    try:
        answers = ast.literal_eval(literal)
        "".join(answers).encode()  # refuses half of a surrogate pair, which nothing can write
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise FieldError("answers", f"{literal!r:.80} is not a Python list of texts") from None
    return Question(None, _unquote(question_text(question)), answers)


def _unquote(text: str) -> str:
    """TriviaQA's lines were quoted twice on publication: undoes what the CSV reader leaves."""
    return text[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', text) else text


FORMATS = {  # the first that fits is taken
    "own": Format("JSON lines with 'question', 'answers' (a list of texts), as the stages read them", _is_own, _own),
    "2wikimultihopqa": Format(
        "a JSON list with '_id', 'question', 'answer', 'evidences'",
        _has("_id", "evidences"),
        _fields("_id", "question", "answer"),
        "2WikiMultiHopQA",
    ),
    "hotpotqa": Format(
        "a JSON list with '_id', 'question', 'answer'",
        _has("_id", "question", "answer", without="evidences"),
        _fields("_id", "question", "answer"),
        "HotpotQA",
    ),
    "ircot": Format(
        "JSON lines with 'question_id', 'question_text', 'answers_objects'", _has("answers_objects"), _ircot
    ),
    "webquestions": Format(
        "a JSON list with 'utterance', 'targetValue'", _has("targetValue"), _webquestions, "WebQuestions"
    ),
    "triviaqa": Format(
        "an object whose 'Data' lists 'Question', 'Answer'", _has("Question", without="answers"), _triviaqa, "TriviaQA"
    ),
    "squad": Format(
        "version 1.1: an object whose 'data' lists 'paragraphs' with 'qas'",
        lambda record: isinstance(record.get("answers"), list) and all(isinstance(a, dict) for a in record["answers"]),
        _squad,
        "SQuAD",
    ),
    "flashrag": Format("JSON lines with 'question', 'golden_answers' ('choices')", _has("golden_answers"), _flashrag),
    "beir": Format(
        "BEIR's queries.jsonl with '_id', 'text', and gold answers in 'answers' or 'metadata'",
        _has("_id", "text", without="title"),
        _beir,
        unanswered="BEIR judges passages, and few of its sets have gold answers, which gains need: put 'answers' into "
        "each query, or take the questions from the data set's own file",
    ),
    "nq_open": Format(
        "JSON lines with 'question', 'answer' ('answer_aliases': MuSiQue)",
        _has("question", "answer", without="_id"),
        _nq_open,
    ),
    "natural_questions": Format(
        "Google's JSON lines with 'question_text', 'annotations'",
        _has("question_text", "annotations"),
        _natural_questions,
        "NaturalQA",
    ),
    "kilt": Format(
        "JSON lines with 'input', 'output' (a list of objects with 'answer')", _has("input", "output"), _kilt
    ),
    "arc": Format("JSON lines with 'question', 'choices', 'answerKey'", _has("answerKey"), _arc),
    "pubhealth": Format(
        "lines with 'claim', 'label' (true, false; others have no answer), JSON or a table",
        _has("claim", "label"),
        _pubhealth,
        "PubHealth",
    ),
    "dpr": Format("lines of question<TAB>Python list (DPR's qas.csv)", _has("python list"), _dpr),
}
UNANSWERED = Format(
    FORMATS["own"].looks,
    _lacks_answers,
    _own,
    unanswered="wanted 'answers', a list of texts; --help lists the fields of other formats",
)
