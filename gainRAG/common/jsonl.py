"""Reading and writing .jsonl and .json files: errors name file, line and field; an output appears only when whole."""

import contextlib
import errno
import fcntl
import glob
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from gainRAG.common.cli import UserError, input_file

logger = logging.getLogger(__name__)

Record = dict[str, Any]
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # file systems without flock: Lustre and NFS as often mounted


class FieldError(ValueError):
    """A record's field is missing or wrong; the reader adds file and line."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field '{field}': {problem}")


# --- reading ----------------------------------------------------------------------------------------------------


def read_records(path: str | Path, shape: Callable[[Record], Record | None] | None = None) -> Iterator[Record]:
    """The records of a .jsonl file (streamed) or a .json file (one list), each passed through `shape`.

    Args:
        path: the ending decides the format.
        shape: an `as_...` function of `schemas`, or another; a record of which it makes None is left out.

    Raises:
        UserError: the file is missing or empty, or a record is unusable: names file, line (or item) and field.
    """
    path = input_file(path)
    if path.suffix not in (".jsonl", ".json"):
        raise UserError(f"{path}: a records file ends in .jsonl (one object a line) or .json (one list)")
    count = 0
    for where, record in (_json_items if path.suffix == ".json" else jsonl_items)(path):
        if not isinstance(record, dict):
            raise UserError(f"{where}: wanted an object, found {type(record).__name__}")
        try:
            shaped = shape(record) if shape else record
        except FieldError as problem:
            raise UserError(f"{where}: {problem}") from None
        except RecursionError:
            raise UserError(f"{where}: lists or objects stand too deep in one another") from None
        count += 1
        if shaped is not None:
            yield shaped
    if not count:
        raise UserError(f"{path}: holds no records")


def jsonl_items(path: Path) -> Iterator[tuple[str, Any]]:
    """(file:line, value) of every line that is not blank."""
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


def parse_json(data: bytes, where: str) -> Any:
    """The JSON value in UTF-8 `data`.

    Raises:
        UserError: not UTF-8 or not JSON; begins with `where`.
    """
    try:
        value = json.loads(data.decode("utf-8-sig").rstrip("\r\n"))  # for the columns in messages
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # refuses half of a surrogate pair, which nothing can write
        return value
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half of a surrogate pair (\\ud800-\\udfff), which no text can") from None
    except UnicodeDecodeError as problem:
        raise UserError(f"{where}: {why_no_text(data)} (byte {problem.start})") from None
    except (ValueError, RecursionError) as problem:  # ValueError: also a number of more than 4300 digits
        raise UserError(f"{where}: is not JSON ({problem})") from None


def why_no_text(data: bytes) -> str:
    """What bytes are that are not UTF-8, and what to do: the end of a message."""
    if data.startswith(b"\x1f\x8b"):
        return "is gzip; let its name end in .gz for a corpus or prepare_questions.py, unpack it for others"
    return "is not UTF-8 text; save the file as UTF-8"


# --- writing ----------------------------------------------------------------------------------------------------


def write_json(path: str | Path, value: Any) -> None:
    """Writes one JSON value; the file appears under its name only when whole."""
    with atomic_write(Path(path)) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Writes .jsonl or .json by the ending, under its name only when whole; returns how many."""
    path = records_file_name(path)
    count = 0
    with atomic_write(path) as file:
        as_list = path.suffix == ".json"
        for record in records:
            before, after = ("," if count else "[", "") if as_list else ("", "\n")
            file.write(before + line_of(record) + after)
            count += 1
        if as_list:
            file.write("]\n" if count else "[]\n")
    return count


def line_of(record: Record) -> str:
    """One record as JSON on one line."""
    return json.dumps(record, ensure_ascii=False)


def output_folder(folder: str | Path) -> Path:
    """`folder` as a Path, made where it is missing: for outputs that are written long after the start.

    Raises:
        UserError: it is a file, or nothing can be written there.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, the output is a folder")
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


def output_file(path: str | Path) -> Path:
    """`path` as a Path: a records file that can be written, its folder made where it is missing.

    Raises:
        UserError: it is a folder, ends otherwise than in .jsonl or .json, or its folder cannot be written to.
    """
    path = records_file_name(path)
    output_folder(path.parent)
    return path


def records_file_name(path: str | Path) -> Path:
    """`path` as a Path that can name an output of records.

    Raises:
        UserError: it is a folder, or ends otherwise than in .jsonl or .json.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".json"):
        raise UserError(f"{path}: an output's name ends in .jsonl or .json")
    if path.is_dir():
        raise UserError(f"{path}: is a folder, the output is a file")
    return path


@contextlib.contextmanager
def atomic_write(path: Path, binary: bool = False) -> Iterator[IO]:
    """A file that is renamed to `path` when the block ends well, and removed when not; of text, unless `binary`.

    What a killed process leaves is `NAME.partial`, which the next one takes over; two at a time are refused.
    """
    partial = path.with_name(f"{path.name}.partial")
    file = open_locked(partial, path, "ab") if binary else open_locked(partial, path, "a", encoding="utf-8")
    whole = False
    try:
        with explain_write_errors(path):
            file.truncate(0)
            yield file
            sync(file)
            partial.replace(path)
            whole = True
    finally:
        if not whole:
            partial.unlink(missing_ok=True)
        close_quietly(file)


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into one line.

    Raises:
        UserError: in place of an OSError of the block.
    """
    try:
        yield
    except OSError as problem:
        hint = {
            errno.ENOSPC: "the disk is full; make space and run the same command again, finished work is kept",
            errno.EDQUOT: "your quota is used up; make space and run the same command again, finished work is kept",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied; choose a folder you can write to",
        }.get(problem.errno or 0, problem.strerror or str(problem))
        raise UserError(f"{path}: cannot be written: {hint}") from problem


def sync(file: IO) -> None:
    """Brings what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def open_locked(path: Path, output: Path, mode: str, **options):
    """`path` opened, and locked as long as it is open: `output` has one writer at a time.

    Raises:
        UserError: another process has it open, or it cannot be written.
    """
    with explain_write_errors(output):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open(mode, **options)
    try:
        lock(file)
        locked = os.stat(path).st_ino == os.fstat(file.fileno()).st_ino
    except (BlockingIOError, FileNotFoundError):
        locked = False
    if not locked:
        file.close()
        raise UserError(f"{output}: another process is writing this output; wait for it or choose another name")
    return file


def lock(file: IO, wait: bool = False) -> bool:
    """Takes the exclusive lock of an open file; a file system without locks is warned of once.

    Returns:
        Whether it has the lock; False where there are none.

    Raises:
        BlockingIOError: another process has it, and `wait` is False.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    except BlockingIOError:
        raise
    except OSError as problem:
        if problem.errno not in NO_LOCKS:
            raise
        warn_of_missing_locks(Path(file.name).parent, problem.strerror)
        return False


def make_once(target: Path, is_made: Callable[[], bool], make: Callable[[Path], None], remedy: str) -> None:
    """Makes a file or folder that several processes and users share, unless it is there; it appears only when whole.

    One process at a time makes it, the others wait. Each writes under a name of its own, so that nothing is mixed up
    on a file system without locks.

    Args:
        is_made: whether `target` is there, and as it should be.
        make: writes it at the path that it is given.
        remedy: what to do where it cannot be written: which flag puts it elsewhere.

    Raises:
        UserError: it cannot be written.
    """
    if is_made():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(f"{target.name}.lock"), "rb", opener=_open_or_create) as file:
            if lock(file, wait=True):
                for left in target.parent.glob(f"{glob.escape(target.name)}.????????.partial"):  # by one that died
                    remove(left)
            if not is_made():
                _make_under_own_name(target, is_made, make)
    except OSError as problem:
        if problem.errno is None:  # a library's own, not about writing
            raise
        raise UserError(f"{target}: cannot be written ({problem.strerror}); {remedy}") from problem


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)  # to read, for the lock file may be another user's


def _make_under_own_name(target: Path, is_made: Callable[[], bool], make: Callable[[Path], None]) -> None:
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        make(partial)
        if not is_made():
            remove(target)
            partial.rename(target)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Removes a file, or a folder with what is in it, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@lru_cache
def warn_of_missing_locks(folder: Path, reason: str) -> None:
    """Says, once a folder, that nothing keeps a second process from the same output."""
    logger.warning("%s: its file system has no locks (%s): do not run two commands with one output", folder, reason)


def close_quietly(file: IO) -> None:
    """Closes the file. A full disk was reported before: what is lost then is lost already."""
    with contextlib.suppress(OSError):
        file.close()


def cache_folder() -> Path:
    """Where downloads and prepared models are kept: GAINRAG_CACHE, or ~/.cache/gainrag."""
    return Path(os.environ.get("GAINRAG_CACHE") or Path.home() / ".cache" / "gainrag")
