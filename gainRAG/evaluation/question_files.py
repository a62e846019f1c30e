"""Reading question sets as they are published: the records of a file, its format, and the questions in it."""

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gainRAG.common.cli import UserError, input_file
from gainRAG.common.jsonl import FieldError, Record, parse_json, why_no_text
from gainRAG.evaluation.question_formats import FORMATS, UNANSWERED, Format, question_text


def read_entries(name: str, file: IO[bytes], format_name: str | None) -> Iterator[tuple[str, Any]]:
    """The file's records, each with where it is, whatever holds them: a list, lines, nested objects or a table.

    Raises:
        UserError: the file is not UTF-8, not JSON, not a table, or not nested as its format is.
    """
    lines = ((number, line) for number, line in enumerate(file, 1) if line.removeprefix(codecs.BOM_UTF8).strip())
    number, first = next(lines, (0, b""))
    first = first.removeprefix(codecs.BOM_UTF8)
    if not first:
        raise UserError(f"{name}: is empty")
    if format_name == "dpr" or (format_name is None and first.lstrip()[:1] not in b"{["):
        yield from _table_entries(name, b"\n" * (number - 1) + first + file.read())
        return
    second = next(lines, None)
    if second and _is_json(first):
        for place, line in itertools.chain([(number, first), second], lines):
            yield f"{name}:{place}", parse_json(line, f"{name}:{place}")
        return
    of_lines = second and first.lstrip()[:1] == second[1].lstrip()[:1] == b"{" and _is_json(second[1])
    if of_lines or not second:
        yield from _nested_entries(name, parse_json(first, f"{name}:{number}"))
    else:
        yield from _nested_entries(name, parse_json(first + second[1] + file.read(), name))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _nested_entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and "data" in value and "question" not in value:
        yield from _squad_entries(name, value["data"])
        return
    if isinstance(value, dict):
        value = value.get("Data", [value])
    if not isinstance(value, list):
        raise UserError(f"{name}: wanted a list of questions, found {type(value).__name__}")
    yield from ((f"{name}: item {number}", item) for number, item in enumerate(value, 1))


def _squad_entries(name: str, articles: Any) -> Iterator[tuple[str, Any]]:
    where = name
    try:
        for a, article in enumerate(articles, 1):
            where = f"{name}: article {a}"
            for p, paragraph in enumerate(article["paragraphs"], 1):
                for q, item in enumerate(paragraph["qas"], 1):
                    yield f"{name}: article {a}, paragraph {p}, question {q}", item
    except (KeyError, TypeError):
        raise UserError(f"{where}: not SQuAD 1.1 (data > paragraphs > qas)") from None


def _table_entries(name: str, data: bytes) -> Iterator[tuple[str, Any]]:
    """DPR's questions and answers, or a table whose first line names `claim` and `label`."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise UserError(f"{name}:{line}: {why_no_text(data)}") from None
    csv.field_size_limit(max(len(text), 131072))
    header = text.split("\n", 1)[0].strip("\r").split("\t")
    named = {"claim", "label"} <= set(header)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=not named)
    columns = header if named else ["question", "python list"]
    wanted = f"the {len(header)} of the first line" if named else "2, question<TAB>Python list of answers"
    line = 1
    try:
        for row in rows:
            if row and len(row) != len(columns):
                raise UserError(f"{name}:{line}: {len(row)} columns; wanted {wanted}")
            if row and not (named and line == 1):
                yield f"{name}:{line}", dict(zip(columns, row, strict=True))
            line = rows.line_num + 1
    except csv.Error as problem:
        raise UserError(f"{name}:{line}: not CSV: {problem}; a quoted field that is never closed?") from None


def detect(where: str, record: Any, format_name: str | None) -> Format:
    """The record's format: the named one, or the first that fits; UNANSWERED where only a later record can tell.

    Raises:
        UserError: no format fits, or not the named one; says what was found and what was wanted.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: wanted an object, found {type(record).__name__}")
    found = ", ".join(map(repr, record)) or "no fields"
    wanted = list(FORMATS.values()) if format_name is None else [FORMATS[format_name]]
    for candidate in [*wanted, *([UNANSWERED] if FORMATS["own"] in wanted else [])]:
        if candidate.detect(record):
            return candidate
    if format_name is None:
        raise UserError(f"{where}: found {found}: no known format; --help lists them")
    raise UserError(f"{where}: found {found}; --format {format_name} is {wanted[0].looks}")


@dataclass
class Tally:
    """What was left out on the way."""

    duplicate_answers: int = 0
    empty_answers: int = 0
    unanswered: int = 0


def read_questions(
    name: str,
    data: bytes | IO[bytes],
    format_name: str | None = None,
    dataset: str | None = None,
    drop_unanswered: bool = False,
) -> tuple[str | None, list[Record], Tally]:
    """Questions of one file in any of the formats.

    Args:
        name: the file's name, for messages.
        data: its content, or the file, open; lines of it are read one at a time.
        format_name: key of FORMATS; None detects it.
        dataset: begins the ids of questions without an official one; None takes the format's, or the file's name.
        drop_unanswered: leave questions without any answer out; otherwise they are an error.

    Returns:
        The data set's name if known, records of id, question, answers and what else is passed on, in the file's
        order, and what was left out.

    Raises:
        UserError: names file, line (or item) and field.
    """
    questions, tally, kind = [], Tally(), None
    first_seen: dict[str, str] = {}
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    for number, (where, entry) in enumerate(read_entries(name, file, format_name), 1):
        if kind in (None, UNANSWERED):
            kind = detect(where, entry, format_name)
            dataset = dataset or kind.dataset
            prefix = dataset or Path(name.removesuffix(".gz")).stem
        try:
            if not isinstance(entry, dict):
                raise FieldError("(record)", f"wanted an object, found {type(entry).__name__}")
            found = kind.read(entry)
            answers = _clean_answers(found.answers, tally)
            question = question_text(found.text)
        except FieldError as problem:
            raise UserError(f"{where}: {problem}") from None
        if not answers and not drop_unanswered:
            hint = f"; {kind.unanswered}" if kind.unanswered else ""
            raise UserError(f"{where}: no usable answer; --drop_unanswered leaves such questions out{hint}")
        if not answers:
            tally.unanswered += 1
            continue
        identity = f"{prefix}-{number}" if found.id is None else str(found.id)
        if first_seen.setdefault(identity, where) != where:
            raise UserError(f"{where}: id {identity!r} is already at {first_seen[identity]}; ids must be unique")
        record = {"id": identity, "question": question, "answers": answers}
        questions.append({**record, **found.extra, **record})  # in this order, and never another id
    if not questions:
        raise UserError(f"{name}: holds no questions with answers")
    return dataset, questions, tally


def _clean_answers(answers: Any, tally: Tally) -> list[str]:
    """The answers without outer spaces, empty ones and duplicates, in their order."""
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list):
        raise FieldError("answers", f"{answers!r:.80} is not a list of texts")
    for answer in answers:
        if not isinstance(answer, str):
            raise FieldError("answers", f"{answer!r:.80} is not text")
    full = [answer.strip() for answer in answers if answer.strip()]
    unique = list(dict.fromkeys(full))
    tally.empty_answers += len(answers) - len(full)
    tally.duplicate_answers += len(full) - len(unique)
    return unique


def read_wordings(path: str, key: str) -> set[str]:
    """The questions (by wording) listed under a key of a JSON file.

    Raises:
        UserError: the file is not JSON, or has no such list.
    """
    content = parse_json(input_file(path).read_bytes(), path)
    questions = content.get(key) if isinstance(content, dict) else None
    if not isinstance(questions, list) or not all(isinstance(question, str) for question in questions):
        raise UserError(f"{path}: wanted JSON with a list of questions under '{key}'")
    return set(questions)
