"""Passage vectors on disk: the shards that passage_embed writes, and Contriever's published pickles.

A folder of ours holds `shards.jsonl` (one line a shard: vectors, ids, count, dim, and which passages they are: the
store's digest and the position of the first; there only when complete), and for each shard a float16 array
`passages_00000.npy`, shape (count, dim), with its ids in `passages_00000.ids.npy`.
A folder of Contriever's holds `passages_00`, ...: pickles of (list of ids, array), read without running anything.
"""

import glob
import hashlib
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import FieldError, Record, atomic_write, parse_json, read_records
from gainRAG.common.settings import fingerprint, settings_file
from gainRAG.retrieval_engine.modeling import SHARED
from gainRAG.retrieval_engine.passages import PassageStore

MANIFEST = "shards.jsonl"
PUBLISHED = "passages_[0-9]*"
ENCODER = "model_name_or_path"


@dataclass(frozen=True)
class Shard:
    """Vectors of some passages.

    Attributes:
        path: the .npy, or the pickle.
        ids_path: the ids' .npy; None for a pickle, which holds them itself.
        count, dim: shape of the vectors; None for a pickle that has not been read.
        passages, first: the vectors are those of the passages from position `first` on in the store of this digest;
            None where only the ids say whose they are.
    """

    path: Path
    ids_path: Path | None = None
    count: int | None = None
    dim: int | None = None
    passages: str | None = None
    first: int | None = None

    def load(self) -> tuple[list[str], np.ndarray]:
        """The ids, and the vectors (float16 or float32; memory-mapped, except from a pickle).

        Raises:
            UserError: the shard is damaged, or a pickle holds anything but ids and an array.
        """
        if self.ids_path is None:
            return read_published(self.path)
        ids = _ids(self.ids_path)
        if len(ids) != self.count:
            raise UserError(f"{self.ids_path}: {len(ids)} ids for {self.count} vectors; embed the passages again")
        return ids, self._vectors()

    def place(self, store: PassageStore) -> tuple[np.ndarray, np.ndarray]:
        """The positions of its passages in the corpus, int64, and the vectors as `load` gives them.

        Raises:
            UserError: as `load`, an id is of no passage, or there are more vectors than passages.
        """
        if self.first is not None and self.passages == store.fingerprint:
            end = self.first + self.count
            if end > len(store):
                raise UserError(
                    f"{self.path}: passages from {self.first} on, of {len(store)}; embed the passages again"
                )
            return np.arange(self.first, end), self._vectors()
        ids, vectors = self.load()
        try:
            return store.positions(ids), vectors
        except KeyError as unknown:
            raise UserError(
                f"{self.path}: id {unknown} is of no passage of the corpus; give the corpus that was embedded"
            ) from None

    def _vectors(self) -> np.ndarray:
        vectors = _array(self.path)
        if vectors.dtype.str not in ("<f2", "<f4"):
            raise UserError(f"{self.path}: holds {vectors.dtype}, wanted float16; embed the passages again")
        if vectors.shape != (self.count, self.dim):
            raise UserError(
                f"{self.path}: {vectors.shape} vectors, wanted {(self.count, self.dim)}; embed the passages again"
            )
        return vectors


def _array(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, TokenError, TypeError) as problem:
        reason = " ".join(str(problem).split())
        raise UserError(f"{path}: cannot be read ({reason:.200}); embed the passages again") from None


def _ids(path: Path) -> list[str]:
    ids = _array(path)
    if ids.dtype.kind != "S" or ids.ndim != 1:
        raise UserError(f"{path}: holds {ids.ndim} dimensions of {ids.dtype}, wanted ids; embed the passages again")
    try:
        return [passage_id.decode() for passage_id in ids.tolist()]
    except UnicodeDecodeError:
        raise UserError(f"{path}: an id is not UTF-8 text; embed the passages again") from None


def save_shard(
    folder: Path,
    number: int,
    ids: list[str],
    vectors: np.ndarray,
    passages: str | None = None,
    first: int | None = None,
) -> Record:
    """Writes one shard, each file under its name only when whole; returns its line of the manifest.

    `passages` and `first`: see `Shard`.
    """
    name = f"passages_{number:05d}"
    _save(folder / f"{name}.ids.npy", np.array([passage_id.encode() for passage_id in ids]))
    _save(folder / f"{name}.npy", vectors.astype("float16"))
    line = {"vectors": f"{name}.npy", "ids": f"{name}.ids.npy", "count": len(ids), "dim": vectors.shape[1]}
    return line if passages is None else {**line, "passages": passages, "first": first}


def _save(path: Path, values: np.ndarray) -> None:
    with atomic_write(path, binary=True) as file:  # on the disk before the manifest says that it is there
        np.save(file, values, allow_pickle=False)


def as_shard(record: Record) -> Record:
    """A line of the manifest: `vectors`, `ids` (names of files beside it), `count`, `dim`, and if known `passages`
    and `first`."""
    kinds = {"vectors": str, "ids": str, "count": int, "dim": int}
    if record.get("first") is not None or record.get("passages") is not None:
        kinds |= {"passages": str, "first": int}
    for field, kind in kinds.items():
        value = record.get(field)
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 0):
            raise FieldError(field, "missing or of another type; passage_embed writes it")
        if field in ("vectors", "ids") and (Path(value).name != value or "\0" in value):
            raise FieldError(field, f"{value!r:.80} is not the name of a file beside it")
    return {field: record[field] for field in kinds}


def embeddings_folder(patterns: Sequence[str]) -> Path | None:
    """The folder of embeddings that its own name means, or a glob of its files, or their names; None for none.

    Raises:
        UserError: they mean nothing, several folders, or not all embeddings of one.
    """
    patterns = [pattern for pattern in patterns if pattern]
    if len(patterns) < 2 and (Path(*patterns).is_dir() or not any(map(glob.has_magic, patterns))):
        return Path(patterns[0]) if patterns else None
    given = " ".join(patterns)
    files = {Path(file) for pattern in patterns for file in glob.glob(pattern)}
    folders = {file if file.is_dir() else file.parent for file in files}
    if len(folders) != 1:
        raise UserError(f"--passages_embeddings {given:.200}: means {len(folders)} folders, wanted one of embeddings")
    folder = folders.pop()
    missing = {shard.path for shard in open_shards(folder)} - files
    if missing and folder not in files:
        raise UserError(f"--passages_embeddings {given:.200}: leaves out {min(missing)}; give the folder {folder}")
    return folder


def open_shards(folder: str | Path) -> list[Shard]:
    """The shards of an embeddings folder, in order.

    Raises:
        UserError: the folder is missing, unfinished, or holds no embeddings, or its manifest lists a shard twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of passage embeddings; passage_embed makes one")
    if (folder / MANIFEST).exists():
        shards = [
            Shard(folder / line.pop("vectors"), folder / line.pop("ids"), **line)
            for line in read_records(folder / MANIFEST, as_shard)
        ]
        for path, times in Counter(shard.path for shard in shards).items():
            if times > 1:
                raise UserError(f"{folder / MANIFEST}: lists {path.name} {times} times; embed the passages again")
        return shards
    if (folder / f"{MANIFEST}.unfinished").exists():
        raise UserError(f"{folder}: its embeddings are unfinished; run the same passage_embed command again")
    published = sorted(path for path in folder.glob(PUBLISHED) if path.suffix in ("", ".pkl"))
    if not published:
        raise UserError(f"{folder}: holds neither {MANIFEST} (passage_embed) nor passages_00, ... (Contriever's)")
    return [Shard(path) for path in published]


def check_shards(shards: list[Shard], dim: int, store: PassageStore) -> None:
    """Refuses, before anything is computed, what can be told without reading vectors.

    Raises:
        UserError: a shard's dimension is not `dim`, it is known to be of another corpus, or one of its ids is of no
            passage; or all of them have fewer vectors than there are passages.
    """
    for shard in shards:
        if shard.passages not in (None, store.fingerprint):
            raise UserError(
                f"{shard.path}: vectors of another corpus, or of this one before it was changed; give that corpus, or "
                "embed this one (passage_embed, with --overwrite if into the same folder)"
            )
        if shard.dim not in (None, dim):
            raise UserError(f"{shard.path}: vectors of {shard.dim} dimensions, the encoder makes {dim}")
        if shard.ids_path:
            shard.place(store)
    if shards and all(shard.count is not None for shard in shards):
        require_all(sum(shard.count for shard in shards), store)


def require_all(vectors: int, store: PassageStore) -> None:
    """Refuses to search a part of the corpus as if it were the whole.

    Args:
        vectors: how many there are of its passages that have a text.

    Raises:
        UserError: fewer than there are such passages.
    """
    passages = len(store) - len(store.empty)
    if vectors < passages:
        raise UserError(
            f"{passages - vectors} of the corpus's {passages} passages have no vector; fetch or embed the missing ones"
        )


def shards_fingerprint(shards: list[Shard]) -> str:
    """Identifies embeddings by their vectors, whatever else is in their folder."""
    return hashlib.sha256("".join(fingerprint(shard.path) for shard in shards).encode()).hexdigest()[:16]


def embedding_settings(place: str | Path) -> Record | None:
    """The settings that an embeddings folder, or the vectors of an index, were made with; None if nothing says.

    Raises:
        UserError: the file that says it is damaged.
    """
    place = Path(place)
    path = settings_file(place / MANIFEST if place.is_dir() else place)
    if not path.exists():
        return None
    settings = parse_json(path.read_bytes(), str(path))
    if not place.is_dir() and isinstance(settings, dict):
        settings = settings.get("made_with")
    if settings is not None and not _is_settings(settings):
        raise UserError(f"{path}: not the settings that passage_embed writes; embed the passages again")
    return settings


def _is_settings(settings: Any) -> bool:
    flags, inputs = (settings.get(name) if isinstance(settings, dict) else None for name in ("flags", "inputs"))
    return isinstance(flags, dict) and isinstance(inputs, dict) and flags.keys() >= SHARED.keys() and ENCODER in inputs


# --- pickles, without running them ------------------------------------------------------------------------------


# What the pickle of an array calls, by the name that it is pickled under.
_MAKES_ARRAYS = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray._reconstruct": np.zeros(0).__reduce__()[0],
    "numpy.core.numeric._frombuffer": np.zeros(1).__reduce_ex__(5)[0],
}


class _ArraysAndIds(pickle.Unpickler):
    """Admits lists, tuples, texts, numbers and NumPy arrays; every other global is refused, by name."""

    def find_class(self, module: str, name: str):
        full_name = f"{module.replace('numpy._core.', 'numpy.core.')}.{name}"
        if full_name not in _MAKES_ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _MAKES_ARRAYS[full_name]


def read_published(path: Path) -> tuple[list[str], np.ndarray]:
    """(ids, vectors) of one of Contriever's pickles.

    Raises:
        UserError: it is damaged, or holds anything else (nothing of it is run).
    """
    try:
        with path.open("rb") as file:
            content = _ArraysAndIds(file).load()
    except pickle.UnpicklingError as problem:
        raise UserError(f"{path}: refused: a pickle of ids and vectors holds no {problem}") from None
    except (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RecursionError, TypeError, ValueError):
        raise UserError(f"{path}: is not a pickle of (ids, vectors), or damaged") from None
    ids, vectors = content if isinstance(content, tuple | list) and len(content) == 2 else (None, None)
    shape = vectors.shape if isinstance(vectors, np.ndarray) else ()
    if not isinstance(ids, list) or len(shape) != 2 or shape[0] != len(ids):
        raise UserError(f"{path}: wanted (list of ids, array of shape (ids, dim))")
    if vectors.dtype.kind != "f":
        raise UserError(f"{path}: an array of {vectors.dtype}, wanted floats")
    if not all(isinstance(passage_id, str | int) for passage_id in ids):
        raise UserError(f"{path}: an id is neither text nor a number")
    return [str(passage_id) for passage_id in ids], vectors


def rows_of(vectors: np.ndarray, part: slice) -> np.ndarray:
    """Some rows as they are stored; of a memory-mapped file, mapped anew.

    A mapping counts as the process's memory for as long as it lives: so no more of it than one part ever does.
    """
    if isinstance(vectors, np.memmap):
        vectors = np.load(vectors.filename, mmap_mode="c", allow_pickle=False)
    return vectors[part]


def as_float32(vectors: np.ndarray, buffer: np.ndarray | None = None) -> np.ndarray:
    """Vectors in float32, in the first rows of `buffer` if one is given: fresh memory takes twice as long to fill."""
    found = np.empty(vectors.shape, "float32") if buffer is None else buffer[: len(vectors)]
    if vectors.dtype == np.float16 and vectors.flags.writeable:
        torch.from_numpy(found).copy_(torch.from_numpy(vectors))  # on all cores, by the CPU's own instructions
    else:
        found[:] = vectors
    return found
