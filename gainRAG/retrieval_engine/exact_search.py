"""Exact search by inner product over shards on disk.

It reads the shards chunk by chunk, lets FAISS find each chunk's best (on every GPU there is, or the CPU)
and keeps the best so far: memory depends on the chunk, not on the corpus. Equal scores stand in the order of the
passages. Scores are float32; higher is better.
"""

import argparse
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gainRAG.common.cli import UserError
from gainRAG.common.parallel import map_chunks
from gainRAG.retrieval_engine.passages import PassageStore
from gainRAG.retrieval_engine.vectors import Shard, as_float32, rows_of

logger = logging.getLogger(__name__)

GB = 1 << 30
CHUNK_ROWS = 1 << 18  # more makes nothing faster
GPU_K = 2048  # FAISS on a GPU finds at most so many
GROUPS_A_WORKER = 4  # of shards: what a worker that dies loses, and how evenly the work ends

Chunk = tuple[np.ndarray, np.ndarray]  # positions in the corpus, int64 (n,); vectors as stored (n, dim)
Knn = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass
class Best:
    """The k best passages of each query so far; `scores` (queries, k) float32, `positions` (queries, k) int64.

    A place not filled holds -inf and -1.
    """

    queries: int
    k: int
    scores: np.ndarray = field(init=False)
    positions: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.scores = np.full((self.queries, self.k), -np.inf, "float32")
        self.positions = np.full((self.queries, self.k), -1, "int64")

    def merge(self, scores: np.ndarray, positions: np.ndarray) -> None:
        """Takes in more candidates, shapes (queries, any): by score, then by position."""
        scores = np.concatenate([self.scores, scores], axis=1)
        positions = np.concatenate([self.positions, positions], axis=1)
        order = np.lexsort((positions, -scores), axis=1)[:, : self.k]
        self.scores = np.take_along_axis(scores, order, axis=1)
        self.positions = np.take_along_axis(positions, order, axis=1)


def search_shards(
    queries: np.ndarray,
    shards: list[Shard],
    store: PassageStore,
    k: int,
    max_bytes: float,
    knns: list[Knn] | None = None,
) -> Best:
    """Exact search over all shards.

    Args:
        queries: float32, (queries, dim).
        shards: from `open_shards`.
        store: the passages; gives each id its position.
        k: passages wanted a query.
        max_bytes: bound on the memory that the search takes beside the queries and their results.
        knns: what searches a chunk, one a device; None finds the GPUs, else takes the CPU.

    Raises:
        UserError: a vector's dimension is not the queries', or an id is of no passage: says which.
    """
    knns = knns or faiss_knns()
    k = min(k, len(store))
    best = Best(len(queries), k)
    size = min(len(store), chunk_rows(queries, k, max_bytes, len(knns)))
    chunks = with_progress(shard_chunks(shards, store, queries.shape[1], size), len(store))
    lock = threading.Lock()

    def work(device: tuple[Knn, np.ndarray], chunk: Chunk) -> tuple[Knn, np.ndarray]:
        knn, buffer = device
        positions, stored = chunk
        scores, rows = best_of_chunk(knn, queries, as_float32(stored, buffer), k, best.scores[:, -1])
        with lock:
            best.merge(scores, positions[rows])
        return device

    with ThreadPoolExecutor(len(knns)) as pool:
        running, idle = set(), [(knn, np.empty((size, queries.shape[1]), "float32")) for knn in knns]
        for chunk in chunks:
            if not idle:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                idle = [future.result() for future in finished]
            running.add(pool.submit(work, idle.pop(), chunk))
        for future in running:
            future.result()
    return best


def search_on_workers(
    args: argparse.Namespace, queries: np.ndarray, shards: list[Shard], store: PassageStore, k: int, max_bytes: float
) -> Best:
    """`search_shards`, the shards shared out over the workers of `args`.

    It is the shards that are split, not the questions: reading the vectors takes most of the time, and so each is
    read once. The driver holds the best of all questions so far, and those of a few groups of shards.
    """
    size = -(-len(shards) // (GROUPS_A_WORKER * args.num_workers))
    groups = [shards[start : start + size] for start in range(0, len(shards), size)]
    best = Best(len(queries), min(k, len(store)))
    worker = partial(SearchWorker, queries, store.folder, k, max_bytes)
    for found in tqdm(map_chunks(args, worker, groups), total=len(groups), unit="group of shards", desc="search"):
        best.merge(found.scores, found.positions)
    return best


class SearchWorker:
    """The best of some shards for all queries; see `workers.Worker`."""

    def __init__(self, queries: np.ndarray, store_folder: Path, k: int, max_bytes: float) -> None:
        self.queries, self.k, self.max_bytes = queries, k, max_bytes
        self.store = PassageStore(store_folder)

    def __call__(self, groups: Iterator[list[Shard]]) -> Iterable[Best]:
        return map(self.search, groups)

    def search(self, shards: list[Shard]) -> Best:
        return search_shards(self.queries, shards, self.store, self.k, self.max_bytes)

    def close(self) -> None:
        """Nothing is loaded after it."""


def with_progress(chunks: Iterable[Chunk], total: int) -> Iterator[Chunk]:
    """The chunks, with a bar over their passages."""
    with tqdm(total=total, unit="passage", unit_scale=True, desc="search") as bar:
        for positions, vectors in chunks:
            yield positions, vectors
            bar.update(len(positions))


def chunk_rows(queries: np.ndarray, k: int, max_bytes: float, devices: int = 1) -> int:
    """Vectors a chunk, so that all that is in memory at a time keeps within `max_bytes`: the chunks' rows, which may
    be stored as float32, and the results.

    Raises:
        UserError: the results alone need more.
    """
    results = 80 * len(queries) * (k + 1)  # candidates, old and new, and their order
    a_row = row_bytes(queries.shape[1], devices)
    rows = int((max_bytes - results) // a_row)
    if rows < 1:
        raise UserError(
            f"--max_memory: the results of {len(queries)} questions at --n_docs {k} alone need "
            f"{(results + a_row) / GB:.2g} GB; give more, or search fewer questions at once"
        )
    return min(rows, CHUNK_ROWS)


def row_bytes(dim: int, devices: int) -> int:
    """What a vector of a chunk takes: on each device as stored and as float32, and of the next chunk as stored."""
    return (4 + 8 * devices) * dim + 64  # 64: its id and position


def shard_chunks(shards: list[Shard], store: PassageStore, dim: int, rows: int) -> Iterator[Chunk]:
    """The shards' vectors, at most `rows` at a time, with the positions of their passages.

    Raises:
        UserError: a vector's dimension is not `dim`, or an id is of no passage of the store.
    """
    for shard in shards:
        positions, vectors = shard.placed(store)
        if vectors.shape[1] != dim:
            raise UserError(f"{shard.path}: vectors of {vectors.shape[1]} dimensions, the encoder makes {dim}")
        for start in range(0, len(vectors), rows):
            part = slice(start, start + rows)
            yield positions[part], rows_of(vectors, part)


def best_of_chunk(
    knn: Knn, queries: np.ndarray, vectors: np.ndarray, k: int, floor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of a chunk's k best, (queries, at most k).

    Of equal scores in the last places it takes the first rows, unless they are below `floor` (queries,), the scores
    that a passage must reach to count.
    """
    k = min(k, len(vectors))
    wide = min(k + 1, len(vectors))
    scores, rows = knn(queries, vectors, wide)
    if wide > k:
        for query in np.flatnonzero((scores[:, k] == scores[:, k - 1]) & (scores[:, k] >= floor)):
            _first_of_equals(queries[query], vectors, scores[query, :k], rows[query, :k])
    return scores[:, :k], rows[:, :k]


def _first_of_equals(query: np.ndarray, vectors: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
    """FAISS keeps any of the rows that tie for the last places: puts the first of them there."""
    all_scores = vectors @ query
    equals = np.flatnonzero(all_scores == all_scores[rows[-1]])
    places = np.flatnonzero(scores == scores[-1])
    if len(equals) >= len(places):
        rows[places] = equals[: len(places)]


def faiss_knns() -> list[Knn]:
    """One searcher a GPU, or one for the CPU."""
    import faiss

    metric = faiss.METRIC_INNER_PRODUCT
    if not gpu_count():
        return [lambda queries, vectors, k: faiss.knn(queries, vectors, k, metric=metric)]

    def on_gpu(device: int) -> Knn:
        resources = faiss.StandardGpuResources()
        return lambda queries, vectors, k: faiss.knn_gpu(resources, queries, vectors, k, metric=metric, device=device)

    return [on_gpu(device) for device in range(gpu_count())]


def gpu_count() -> int:
    """GPUs that this FAISS can use."""
    import faiss

    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
