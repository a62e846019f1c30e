"""FAISS indexes of any `faiss.index_factory` type (IVF, PQ, OPQ, SQfp16, HNSW): made once, reopened memory-mapped.

The vector of the passage at position p of the corpus has the number p.
"""

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import Record, make_once, write_json
from gainRAG.common.settings import fingerprint, read_settings, settings_file
from gainRAG.retrieval_engine.exact_search import CHUNK_ROWS, GIB, TopK, shard_chunks
from gainRAG.retrieval_engine.passages import PassageStore
from gainRAG.retrieval_engine.vectors import Shard, as_float32, embedding_settings, require_all, shards_fingerprint

logger = logging.getLogger(__name__)

TRAINING_ROWS = 1_000_000  # at most so many vectors train an index
FILE = "file"  # of an index's settings: its fingerprint, for FAISS itself may crash on a damaged file


@dataclass(frozen=True)
class SearchOptions:
    """Which vectors dense retrieval searches, and how.

    Attributes:
        embeddings: folder of shards; None: `index_path` is there already.
        index_type: "Flat" searches exactly; else a FAISS factory string.
        index_path: the FAISS index; None: exact search.
        search_params: FAISS parameters, for example "nprobe=64" or "efSearch=128".
        max_bytes: bound on the memory of exact search, and of training an index.
        overwrite: an index that is damaged or made from something else is made anew.
    """

    embeddings: Path | None
    index_type: str = "Flat"
    index_path: Path | None = None
    search_params: str = ""
    max_bytes: float = 8 * GIB
    overwrite: bool = False


def load_or_build_index(options: SearchOptions, shards: list[Shard], store: PassageStore, dim: int):
    """The index at `options.index_path`, made first if there is none.

    Raises:
        UserError: it was made of another type or from other embeddings (unless `options.overwrite`).
    """
    path = options.index_path
    made_from = {
        "index_type": options.index_type,
        "embeddings": shards_fingerprint(shards),
        "made_with": options.embeddings and embedding_settings(options.embeddings),
    }
    if shards:

        def is_made() -> bool:
            return path.exists() and (not options.overwrite or _is_whole(path, made_from))

        def make(partial: Path) -> None:
            build_index(options, partial, shards, store, dim)
            write_json(settings_file(path), {**made_from, FILE: fingerprint(partial)})

        make_once(path, is_made, make, "--index_path FILE puts the index elsewhere")
        settings = read_settings(path)
        if settings and {**settings, FILE: None} != {**made_from, FILE: None}:
            raise UserError(f"{path}: was made of another type or from other embeddings; --overwrite makes it anew")
    return open_index(path, dim, store, options.search_params)


def _is_whole(path: Path, made_from: Record) -> bool:
    try:
        return read_settings(path) == {**made_from, FILE: fingerprint(path)}
    except UserError:
        return False


def build_index(options: SearchOptions, path: Path, shards: list[Shard], store: PassageStore, dim: int) -> None:
    """Trains an index on a sample, fills it chunk by chunk, and saves it.

    Raises:
        UserError: FAISS does not know the factory string, cannot train it, or the embeddings are not in the order of
            the corpus.
    """
    import faiss

    factory = options.index_type
    index = factory_index(factory, dim)
    rows = max(1, min(CHUNK_ROWS, int(options.max_bytes // (16 * dim))))
    if not index.is_trained:
        _train(index, factory, _sample(shards, store, dim, rows, options.max_bytes))
    for positions, vectors in shard_chunks(shards, store, dim, rows):
        if positions[0] != index.ntotal or not (np.diff(positions) == 1).all():
            raise UserError(f"--index_type {factory}: needs the embeddings in the order of the corpus; embed it again")
        index.add(as_float32(vectors))
    require_all(index.ntotal, store)
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as problem:
        raise UserError(f"{path}: cannot be written ({_reason(problem)})") from None
    logger.info("made an index of %d vectors, %.2f GiB", index.ntotal, path.stat().st_size / GIB)


def factory_index(factory: str, dim: int):
    """An empty index by inner product.

    Raises:
        UserError: FAISS does not know the factory string, or it does not fit the dimension.
    """
    import faiss

    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as problem:
        reason = _reason(problem)
        raise UserError(f"--index_type {factory}: FAISS makes no such index for {dim} dimensions ({reason})") from None


def _reason(problem: Exception) -> str:
    """What FAISS says went wrong, without the place in its source; a MemoryError says nothing."""
    return next(iter(str(problem).split("Error: ")[-1].splitlines()), "out of memory")


def _train(index, factory: str, sample: np.ndarray) -> None:
    logger.info("training %s on %d vectors", factory, len(sample))
    try:
        index.train(sample)
    except RuntimeError as problem:
        reason = _reason(problem)
        raise UserError(f"--index_type {factory}: cannot be trained on {len(sample)} vectors ({reason})") from None


def _sample(shards: list[Shard], store: PassageStore, dim: int, rows: int, max_bytes: float) -> np.ndarray:
    wanted = max(1, min(TRAINING_ROWS, int(max_bytes // (8 * dim))))
    share = min(1.0, wanted / len(store))
    random = np.random.default_rng(0)
    parts = []
    for _, vectors in shard_chunks(shards, store, dim, rows):
        taken = np.sort(random.choice(len(vectors), max(1, int(share * len(vectors))), replace=False))
        parts.append(as_float32(vectors[taken]))
    return np.concatenate(parts)


def open_index(path: Path, dim: int, store: PassageStore, search_params: str = ""):
    """A saved index of vectors of `dim` components, memory-mapped. One that was made elsewhere has to number the
    vectors by the passages' positions as well.

    Raises:
        UserError: not an index, damaged since it was made here, of another dimension, with more vectors than passages
            or fewer than passages with a text, or an unknown parameter.
    """
    import faiss

    if not path.exists():
        raise UserError(f"{path}: no such index; --index_type with --passages_embeddings makes one there")
    made_here = (read_settings(path) or {}).get(FILE)
    if made_here is None:
        _try_opening(path)
    elif made_here != fingerprint(path):
        settings = settings_file(path).name
        raise UserError(f"{path}: is damaged, or not the index of {settings}; --overwrite makes it anew")
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as problem:
        raise UserError(f"{path}: is no FAISS index, or damaged ({_reason(problem)})") from None
    if index.d != dim:
        raise UserError(f"{path}: an index of {index.d} dimensions, the encoder makes {dim}")
    if index.ntotal > len(store):
        raise UserError(f"{path}: vector {len(store)} is of no passage; the corpus has {len(store)}")
    require_all(index.ntotal, store)
    if search_params:
        try:
            faiss.ParameterSpace().set_index_parameters(index, search_params)
        except RuntimeError:
            raise UserError(f"--search_params {search_params}: not a parameter of the index {path}") from None
    return index


def _try_opening(path: Path) -> None:
    """Opens an index that nothing vouches for in a process of its own: FAISS crashes on some that are cut short.

    Raises:
        UserError: it did.
    """
    opening = "import faiss, sys; faiss.read_index(sys.argv[1], faiss.IO_FLAG_MMAP_IFC)"
    tried = subprocess.run([sys.executable, "-c", opening, str(path)], stderr=subprocess.DEVNULL, check=False)
    if tried.returncode < 0:
        killed_by = signal.Signals(-tried.returncode).name
        raise UserError(f"{path}: is no FAISS index, or damaged (FAISS crashes on it, {killed_by})")


def search_index(queries: np.ndarray, index, k: int, empty: Sequence[int] = ()) -> TopK:
    """An index's answer, equal scores in the order of the passages. Distances (L2) are given negated.

    Args:
        empty: positions of passages that are never retrieved.

    Raises:
        UserError: FAISS finds the index damaged.
    """
    import faiss

    try:
        scores, positions = index.search(queries, min(k + len(empty), index.ntotal))
    except RuntimeError as problem:
        raise UserError(f"the FAISS index is damaged ({_reason(problem)})") from None
    if index.metric_type == faiss.METRIC_L2:
        scores = -scores
    positions = np.where(np.isin(positions, empty), -1, positions)
    scores = np.where(positions < 0, -np.inf, scores).astype("float32")
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return TopK(np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1))
