"""The passage store: a corpus of any size, on disk, opened at once and read passage by passage.

A store is a folder made once from a corpus file (psgs_w100.tsv, .tsv.gz, .jsonl, .jsonl.gz):

    passages.bin  every passage's id, title, text and other fields (JSON, or nothing) in UTF-8, one after the other
    offsets.bin   int64, 4 n + 1 numbers: where each of those pieces begins (the last: where the file ends)
    empty.bin     int64: the positions of the passages without text, which are never embedded or retrieved
    hashes.bin    uint64, n numbers, ascending: a 64-bit hash of each id
    order.bin     int64, n numbers: the position of the passage whose hash that is
    meta.json     count, and what the store was made from

Passages are read at their place in the file and the hashes are memory-mapped, so that a process holds next to nothing.
"""

import argparse
import hashlib
import itertools
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
from gainRAG.common.jsonl import Record, line_of, make_once
from gainRAG.common.settings import fingerprint
from gainRAG.retrieval_engine.corpus import corpus_file, has_contents, read_corpus

logger = logging.getLogger(__name__)

FORMAT = 2
PIECES = 4
ENDS = struct.Struct("<5q")  # where a passage's pieces begin, and where the last one ends


class PassageStore(Sequence):
    """The passages of a store, by position: the order of the corpus.

    Args:
        folder: from `open_store`.

    Attributes:
        fingerprint: identifies the passages and their order, whatever file they came from.
        empty: int64, the positions of the passages without text, ascending.

    Raises:
        UserError: the store is damaged; one that is damaged inside a passage says so when it is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = _meta(folder) or {}
        try:
            self.count, self.fingerprint = int(meta["count"]), str(meta["digest"])
            self._hashes = _numbers(folder / "hashes.bin", "<u8", self.count)
            self._order = _numbers(folder / "order.bin", "<i8", self.count)
            self._offsets = (folder / "offsets.bin").open("rb")
            self._passages = (folder / "passages.bin").open("rb")
            self._size = os.fstat(self._passages.fileno()).st_size
            if _numbers(folder / "offsets.bin", "<i8", PIECES * self.count + 1)[-1] != self._size:
                raise ValueError
            self.empty = np.fromfile(folder / "empty.bin", "<i8")
            if len(self.empty) and not 0 <= self.empty.min() <= self.empty.max() < self.count:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            raise self._damaged() from None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Record:
        """The passage at `position`, from 0: `{id, title, text}` and its other fields."""
        if not 0 <= position < self.count:
            raise IndexError(f"passage {position} of {self.count}")
        begins = ENDS.unpack(os.pread(self._offsets.fileno(), ENDS.size, 8 * PIECES * position))
        if list(begins) != sorted(begins) or not 0 <= begins[0] <= begins[-1] <= self._size:
            raise self._damaged()
        data = os.pread(self._passages.fileno(), begins[-1] - begins[0], begins[0])
        cuts = [begin - begins[0] for begin in begins]
        try:
            passage_id, title, text, extra = (data[a:b].decode() for a, b in itertools.pairwise(cuts))
            return {"id": passage_id, "title": title, "text": text, **(json.loads(extra) if extra else {})}
        except (ValueError, TypeError, RecursionError):
            raise self._damaged() from None

    def _damaged(self) -> UserError:
        return UserError(f"{self.folder}: the passage store is damaged; delete the folder, and it is made again")

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
    parser.add_argument(
        "--no_title",
        action="store_const",
        const=True,
        help="passages have no titles: the first line of `contents` is text, and a title is not embedded",
    )


def store_folder(corpus: str | Path, folder: str | Path | None = None) -> Path:
    """Where the store of `corpus` is: beside it, or below `folder`."""
    corpus = Path(corpus)
    return (Path(folder) if folder else corpus.parent) / f"{corpus.name}.store"


def open_store(corpus: str | Path, folder: str | Path | None = None, no_title: bool = False) -> PassageStore:
    """The store of a corpus file, made first if there is none or the corpus has changed.

    Args:
        corpus: psgs_w100.tsv, .tsv.gz, .jsonl or .jsonl.gz. The .tsv has a header with id, text and title; a
            .jsonl line has `id` and `title`/`text`, or FlashRAG's `contents` ("title\\ntext").
        folder: where the store goes; the corpus file's folder if None.
        no_title: the first line of `contents` is text as well, not a title.

    Raises:
        UserError: the corpus is missing, or unusable: names file and line. No store is left then.
    """
    corpus = corpus_file(corpus)
    target = store_folder(corpus, folder)
    remedy = "--passages_store FOLDER puts the passage store elsewhere"
    make_once(target, partial(is_current, target, corpus, no_title), partial(_make, corpus, no_title), remedy)
    return PassageStore(target)


def is_current(store: Path, corpus: Path, no_title: bool = False) -> bool:
    """Whether `store` is there and was made from the corpus file as it is now."""
    meta = _meta(store)
    return meta is not None and meta.get("source") == _source(corpus, no_title)


def _source(corpus: Path, no_title: bool) -> Record:
    # The fingerprint reads heads and tails only; the time of change shows an edit in between.
    source = {"format": FORMAT, "fingerprint": fingerprint(corpus), "changed": corpus.stat().st_mtime_ns}
    return {**source, "no_title": True} if no_title and has_contents(corpus) else source


def _make(corpus: Path, no_title: bool, folder: Path) -> None:
    folder.mkdir()
    source = _source(corpus, no_title)
    logger.info("making the passage store of %s, once", corpus)
    digest = hashlib.blake2b(digest_size=8)
    hashes, empty = array("Q"), array("q")
    end = 0
    with (folder / "passages.bin").open("wb") as data, (folder / "offsets.bin").open("wb") as offsets:
        offsets.write(bytes(8))
        for line, passage_id, title, text, extra in read_corpus(corpus, no_title):
            if not passage_id or "\0" in passage_id:
                raise UserError(f"{corpus}:{line}: {passage_id!r} is no passage id")
            pieces = [piece.encode() for piece in (passage_id, title, text, line_of(extra) if extra else "")]
            if not text.strip():
                empty.append(len(hashes))
            for piece in pieces:
                end += len(piece)
                offsets.write(end.to_bytes(8, "little"))
            data.write(b"".join(pieces))
            digest.update(b"\0".join(pieces if extra else pieces[:3]) + b"\0\0")
            hashes.append(int.from_bytes(hashlib.blake2b(pieces[0], digest_size=8).digest(), "little"))
    if not hashes:
        raise UserError(f"{corpus}: holds no passages")
    if empty:
        logger.warning("%d passages have no text: they are neither embedded nor retrieved", len(empty))
    (folder / "empty.bin").write_bytes(empty.tobytes())
    _write_ids(corpus, folder, np.frombuffer(hashes, "<u8"))
    meta = {"count": len(hashes), "digest": digest.hexdigest(), "source": source}
    (folder / "meta.json").write_text(json.dumps(meta), "utf-8")
    logger.info("%d passages, %.1f MB", len(hashes), end / 1e6)


def _write_ids(corpus: Path, folder: Path, hashes: np.ndarray) -> None:
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    twins = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(twins):
        twin = hashes[twins[0]]
        rows = [row for row in read_corpus(corpus) if id_hashes([row.id])[0] == twin]
        raise UserError(
            f"{corpus}:{rows[1].line}: id {rows[1].id!r} is in line {rows[0].line} already; ids must differ"
        )
    hashes.tofile(folder / "hashes.bin")
    order.astype("<i8").tofile(folder / "order.bin")
