"""The passage store: a corpus of any size, on disk, opened at once and read passage by passage.

A store is a folder made once from a corpus file (psgs_w100.tsv, .tsv.gz, .jsonl, .jsonl.gz):

    passages.bin  every passage's id, title and text in UTF-8, one after the other
    offsets.bin   int64, 3 n + 1 numbers: where each of those pieces begins (the last: where the file ends)
    hashes.bin    uint64, n numbers, ascending: a 64-bit hash of each id
    order.bin     int64, n numbers: the position of the passage whose hash stands there
    meta.json     count, and what the store was made from

All of it is memory-mapped, so that a process holds only the pages that it has just read.
"""

import csv
import fcntl
import gzip
import hashlib
import json
import logging
import mmap
import shutil
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gainRAG.cli import UserError, input_file
from gainRAG.records import Record, fingerprint

logger = logging.getLogger(__name__)

FORMAT = 1
COLUMNS = ("id", "text", "title")
ENDINGS = (".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz")
BUFFERED = 1 << 18  # passages whose offsets wait in memory while a store is made: 6 MB
MAPPED_READS = 4096  # a read maps up to 64 KB around it; after so many the pages are given back
MAX_FIELD_BYTES = 1 << 27

Row = tuple[int, str, str, str]  # line number, id, title, text


class PassageStore(Sequence):
    """The passages of a store, by position (the order of the corpus) or by id.

    Args:
        folder: from `open_store`.

    Attributes:
        digest: identifies the passages and their order, whatever file they came from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        self.count, self.digest = meta["count"], meta["digest"]
        self._offsets = np.memmap(folder / "offsets.bin", "<i8", "r")
        self._hashes = np.memmap(folder / "hashes.bin", "<u8", "r")
        self._order = np.memmap(folder / "order.bin", "<i8", "r")
        with (folder / "passages.bin").open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._reads = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Record:
        """The passage at `position`: `{id, title, text}`."""
        if not -self.count <= position < self.count:
            raise IndexError(f"passage {position} of {self.count}")
        first = 3 * (position % self.count)
        start, title, text, end = self._offsets[first : first + 4].tolist()
        data = self._bytes[start:end]
        self._give_back_pages()
        return {
            "id": data[: title - start].decode(),
            "title": data[title - start : text - start].decode(),
            "text": data[text - start :].decode(),
        }

    def id(self, position: int) -> str:
        """The id of the passage at `position`."""
        start, end = self._offsets[3 * position : 3 * position + 2].tolist()
        self._give_back_pages()
        return self._bytes[start:end].decode()

    def _give_back_pages(self) -> None:
        self._reads += 1
        if self._reads % MAPPED_READS == 0:
            self._bytes.madvise(mmap.MADV_DONTNEED)

    def by_id(self, passage_id: str) -> Record:
        """The passage of that id.

        Raises:
            KeyError: there is none.
        """
        return self[int(self.positions([passage_id])[0])]

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """The positions of passages, int64, shape (len(ids),).

        Raises:
            KeyError: its argument is the first id that no passage has.
        """
        hashes = id_hashes(ids)
        places = np.searchsorted(self._hashes, hashes)
        found = np.take(self._hashes, places, mode="clip") == hashes
        if not found.all():
            raise KeyError(ids[int(np.argmin(found))])
        positions = np.take(self._order, places)
        if len(ids) == 1 and self.id(int(positions[0])) != ids[0]:
            raise KeyError(ids[0])
        return positions


def id_hashes(ids: Iterable[str]) -> np.ndarray:
    """A 64-bit hash of each id, uint64: the same in every process and on every machine."""
    digests = b"".join(hashlib.blake2b(passage_id.encode(), digest_size=8).digest() for passage_id in ids)
    return np.frombuffer(digests, "<u8")


# --- opening and making -----------------------------------------------------------------------------------------


def store_folder(corpus: str | Path, folder: str | Path | None = None) -> Path:
    """Where the store of `corpus` stands: beside it, or below `folder`."""
    corpus = Path(corpus)
    return (Path(folder) if folder else corpus.parent) / f"{corpus.name}.store"


def open_store(corpus: str | Path, folder: str | Path | None = None) -> PassageStore:
    """The store of a corpus file, made first if there is none or the corpus has changed.

    Args:
        corpus: psgs_w100.tsv, .tsv.gz, .jsonl or .jsonl.gz. The .tsv has a header with id, text and title; a
            .jsonl line has `id` and `title`/`text`, or FlashRAG's `contents` ("title\\ntext").
        folder: where the store goes; the corpus file's folder if None.

    Raises:
        UserError: the corpus is missing, or unusable: names file and line. No store is left then.
    """
    corpus = input_file(corpus)
    if not corpus.name.endswith(ENDINGS):
        raise UserError(f"{corpus}: a corpus ends in {', '.join(ENDINGS)}")
    target = store_folder(corpus, folder)
    if not is_current(target, corpus):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _make_alone(corpus, target)
        except OSError as problem:
            raise UserError(
                f"{target}: the passage store cannot be written ({problem.strerror or problem}); --passages_store "
                "FOLDER puts it elsewhere"
            ) from problem
    return PassageStore(target)


def is_current(store: Path, corpus: Path) -> bool:
    """Whether `store` is there and was made from the corpus file as it is now."""
    meta = store / "meta.json"
    return meta.exists() and json.loads(meta.read_text("utf-8"))["source"] == _source(corpus)


def _source(corpus: Path) -> Record:
    # The fingerprint reads heads and tails only; the time of change shows an edit in between.
    return {"format": FORMAT, "fingerprint": fingerprint(corpus), "changed": corpus.stat().st_mtime_ns}


def _make_alone(corpus: Path, target: Path) -> None:
    """Makes the store while no other process does; the second of two that want it waits and finds it made."""
    partial = target.with_name(target.name + ".partial")
    with target.with_name(target.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_current(target, corpus):
            return
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            _make(corpus, partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _make(corpus: Path, folder: Path) -> None:
    source = _source(corpus)
    logger.info("making the passage store of %s, once", corpus)
    digest = hashlib.blake2b(digest_size=8)
    hashes = array("Q")
    offsets, end = array("q", [0]), 0
    with (folder / "passages.bin").open("wb") as data, (folder / "offsets.bin").open("wb") as offsets_file:
        for line, passage_id, title, text in read_corpus(corpus):
            if not passage_id or "\0" in passage_id:
                raise UserError(f"{corpus}:{line}: {passage_id!r} is no passage id")
            pieces = [piece.encode() for piece in (passage_id, title, text)]
            for piece in pieces:
                end += len(piece)
                offsets.append(end)
            data.write(b"".join(pieces))
            digest.update(b"\0".join(pieces) + b"\0\0")
            hashes.append(int.from_bytes(hashlib.blake2b(pieces[0], digest_size=8).digest(), "little"))
            if len(offsets) >= 3 * BUFFERED:
                offsets.tofile(offsets_file)
                offsets = array("q")
        offsets.tofile(offsets_file)
    if not hashes:
        raise UserError(f"{corpus}: holds no passages")
    _write_ids(corpus, folder, np.frombuffer(hashes, "<u8"))
    meta = {"count": len(hashes), "digest": digest.hexdigest(), "source": source}
    (folder / "meta.json").write_text(json.dumps(meta), "utf-8")
    logger.info("%d passages, %.1f MB", len(hashes), end / 1e6)


def _write_ids(corpus: Path, folder: Path, hashes: np.ndarray) -> None:
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    twins = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(twins):
        _report_duplicate(corpus, hashes[twins[0]])
    hashes.tofile(folder / "hashes.bin")
    order.astype("<i8").tofile(folder / "order.bin")


def _report_duplicate(corpus: Path, twin: np.uint64) -> None:
    lines = [(line, passage_id) for line, passage_id, _, _ in read_corpus(corpus) if id_hashes([passage_id])[0] == twin]
    (first, passage_id), (second, _) = lines[:2]
    raise UserError(f"{corpus}:{second}: id {passage_id!r} stands in line {first} already; ids must differ")


# --- reading a corpus -------------------------------------------------------------------------------------------


def read_corpus(corpus: Path) -> Iterator[Row]:
    """A corpus file's passages as (line, id, title, text), with a progress bar over its bytes.

    Raises:
        UserError: bad UTF-8, a truncated .gz, a missing column or field: names file and line.
    """
    is_table = corpus.name.removesuffix(".gz").endswith(".tsv")
    with corpus.open("rb") as raw, tqdm(total=corpus.stat().st_size, unit="B", unit_scale=True, desc="passages") as bar:
        rows = (_table_rows if is_table else _json_rows)(corpus, _lines(corpus, raw))
        for number, row in enumerate(rows):
            yield row
            if number % 4096 == 0:
                bar.update(raw.tell() - bar.n)
        bar.update(raw.tell() - bar.n)


def _lines(corpus: Path, raw) -> Iterator[tuple[int, str]]:
    file = gzip.GzipFile(fileobj=raw) if corpus.name.endswith(".gz") else raw
    number = 0
    while True:
        try:
            line = file.readline()
        except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
            raise UserError(
                f"{corpus}:{number + 1}: the .gz is cut short or damaged ({problem}); download it again"
            ) from None
        if not line:
            return
        number += 1
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as problem:
            raise UserError(f"{corpus}:{number}: is not UTF-8 text (byte {problem.start})") from None


def _json_rows(corpus: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as problem:
            raise UserError(f"{corpus}:{number}: is not JSON ({problem})") from None
        yield number, *_json_passage(f"{corpus}:{number}", record)


def _json_passage(where: str, record: Record) -> tuple[str, str, str]:
    if not isinstance(record, dict):
        raise UserError(f"{where}: wanted an object, found {type(record).__name__}")
    if isinstance(record.get("contents"), str) and "text" not in record:
        title, _, text = record["contents"].partition("\n")
        record = {**record, "title": title.strip('"'), "text": text}
    for field, kinds in (("id", str | int), ("text", str)):
        if field not in record:
            raise UserError(f"{where}: field '{field}' is missing; wanted id, title and text, or id and contents")
        if not isinstance(record[field], kinds) or isinstance(record[field], bool):
            raise UserError(f"{where}: field '{field}': {record[field]!r:.80} is not text")
    title = record.get("title") or ""
    if not isinstance(title, str):
        raise UserError(f"{where}: field 'title': {title!r:.80} is not text")
    try:
        f"{record['id']}{title}{record['text']}".encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half of a surrogate pair (\\ud800-\\udfff), which no text can") from None
    return str(record["id"]), title, record["text"]


def _table_rows(corpus: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter="\t")
    places = _columns(corpus, next(reader, []))
    start = feed.number + 1
    try:
        for row in reader:
            if feed.ended or any("\n" in field and "\t" in field for field in row):
                raise UserError(f"{corpus}:{start}: a field opens with a quotation mark that is not closed")
            if row:
                if len(row) <= max(places):
                    raise UserError(f"{corpus}:{start}: {len(row)} columns, wanted {', '.join(COLUMNS)}")
                passage_id, text, title = (row[place] for place in places)
                yield start, passage_id, title, text
            start = feed.number + 1
    except csv.Error as problem:
        raise UserError(f"{corpus}:{start}: {problem}") from None


class _Feed:
    """The lines a csv reader asks for. One that ends inside a quoted field asks once more before it gives the row."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self.lines = lines
        self.number = 0
        self.ended = False

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        try:
            self.number, line = next(self.lines)
        except StopIteration:
            self.ended = True
            raise
        return line


def _columns(corpus: Path, header: list[str]) -> list[int]:
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise UserError(
            f"{corpus}:1: the header lacks {', '.join(missing)}; wanted tab-separated columns {', '.join(COLUMNS)}, "
            f"found {', '.join(header) or 'nothing'}"
        )
    return [header.index(column) for column in COLUMNS]
