"""The passage store: a corpus of any size, on disk, opened at once and read passage by passage.

A store is a folder made once from a corpus file (psgs_w100.tsv, .tsv.gz, .jsonl, .jsonl.gz):

    passages.bin  every passage's id, title and text in UTF-8, one after the other
    offsets.bin   int64, 3 n + 1 numbers: where each of those pieces begins (the last: where the file ends)
    hashes.bin    uint64, n numbers, ascending: a 64-bit hash of each id
    order.bin     int64, n numbers: the position of the passage whose hash that is
    meta.json     count, and what the store was made from

Passages are read at their place in the file and the hashes are memory-mapped, so that a process holds next to nothing.
"""

import argparse
import hashlib
import json
import logging
import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import Record, make_once
from gainRAG.common.resume import fingerprint
from gainRAG.retrieval_engine.corpus import corpus_file, read_corpus

logger = logging.getLogger(__name__)

FORMAT = 1
BUFFERED = 1 << 18  # passages whose offsets wait in memory while a store is made: 6 MB
ENDS = struct.Struct("<4q")  # where a passage's id, title and text begin, and where the text ends


class PassageStore(Sequence):
    """The passages of a store, by position (the order of the corpus) or by id.

    Args:
        folder: from `open_store`.

    Attributes:
        digest: identifies the passages and their order, whatever file they came from.

    Raises:
        UserError: the store is damaged; one that is damaged inside a passage says so when it is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = _meta(folder) or {}
        try:
            self.count, self.digest = int(meta["count"]), str(meta["digest"])
            self._hashes = _numbers(folder / "hashes.bin", "<u8", self.count)
            self._order = _numbers(folder / "order.bin", "<i8", self.count)
            self._offsets = (folder / "offsets.bin").open("rb")
            self._passages = (folder / "passages.bin").open("rb")
            self._size = os.fstat(self._passages.fileno()).st_size
            if _numbers(folder / "offsets.bin", "<i8", 3 * self.count + 1)[-1] != self._size:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            raise self._damaged() from None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Record:
        """The passage at `position`: `{id, title, text}`."""
        if not -self.count <= position < self.count:
            raise IndexError(f"passage {position} of {self.count}")
        return self._read(position % self.count)

    def id(self, position: int) -> str:
        """The id of the passage at `position`."""
        return self._read(position)["id"]

    def _read(self, position: int) -> Record:
        id_at, title_at, text_at, end = ENDS.unpack(os.pread(self._offsets.fileno(), ENDS.size, 24 * position))
        if not 0 <= id_at <= title_at <= text_at <= end <= self._size:
            raise self._damaged()
        data = os.pread(self._passages.fileno(), end - id_at, id_at)
        title, text = title_at - id_at, text_at - id_at
        try:
            return {"id": data[:title].decode(), "title": data[title:text].decode(), "text": data[text:].decode()}
        except UnicodeDecodeError:
            raise self._damaged() from None

    def _damaged(self) -> UserError:
        return UserError(f"{self.folder}: the passage store is damaged; delete the folder, and it is made again")

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
        if len(positions) and not (positions.min() >= 0 and positions.max() < self.count):
            raise self._damaged()
        if len(ids) == 1 and self.id(int(positions[0])) != ids[0]:
            raise KeyError(ids[0])
        return positions


def _meta(store: Path) -> Record | None:
    """The store's description; None where there is none, or it is no such thing."""
    try:
        meta = json.loads((store / "meta.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return meta if isinstance(meta, dict) else None


def _numbers(path: Path, kind: str, count: int) -> np.ndarray:
    if path.stat().st_size != count * np.dtype(kind).itemsize:
        raise ValueError
    return np.memmap(path, kind, "r")


def id_hashes(ids: Iterable[str]) -> np.ndarray:
    """A 64-bit hash of each id, uint64: the same in every process and on every machine."""
    digests = b"".join(hashlib.blake2b(passage_id.encode(), digest_size=8).digest() for passage_id in ids)
    return np.frombuffer(digests, "<u8")


# --- opening and making -----------------------------------------------------------------------------------------


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that name a corpus and its store."""
    parser.add_argument("--passages", required=True, help="corpus: psgs_w100.tsv, .tsv.gz, .jsonl or .jsonl.gz")
    parser.add_argument("--passages_store", help="folder for the passage store; default: beside the corpus")


def store_folder(corpus: str | Path, folder: str | Path | None = None) -> Path:
    """Where the store of `corpus` is: beside it, or below `folder`."""
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
    corpus = corpus_file(corpus)
    target = store_folder(corpus, folder)
    remedy = "--passages_store FOLDER puts the passage store elsewhere"
    make_once(target, partial(is_current, target, corpus), partial(_make, corpus), remedy)
    return PassageStore(target)


def is_current(store: Path, corpus: Path) -> bool:
    """Whether `store` is there and was made from the corpus file as it is now."""
    meta = _meta(store)
    return meta is not None and meta.get("source") == _source(corpus)


def _source(corpus: Path) -> Record:
    # The fingerprint reads heads and tails only; the time of change shows an edit in between.
    return {"format": FORMAT, "fingerprint": fingerprint(corpus), "changed": corpus.stat().st_mtime_ns}


def _make(corpus: Path, folder: Path) -> None:
    folder.mkdir()
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
    raise UserError(f"{corpus}:{second}: id {passage_id!r} is in line {first} already; ids must differ")
