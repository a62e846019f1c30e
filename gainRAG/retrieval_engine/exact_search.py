"""Exact search by inner product over shards on disk.

It reads the shards chunk by chunk, lets FAISS find each chunk's top k (on every GPU there is, or the CPU) and keeps
the top k so far in heaps: memory depends on the chunk, not on the corpus. Passages of equal score are in the order of
the corpus. Scores are float32; higher is better.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gainRAG.common.batching import BatchBudget
from gainRAG.common.cli import UserError
from gainRAG.common.parallel import WorkerOptions, map_chunks
from gainRAG.common.progress import ProgressBar
from gainRAG.retrieval_engine.passages import PassageStore
from gainRAG.retrieval_engine.vectors import Shard, as_float32, require_all, rows_of

logger = logging.getLogger(__name__)

GIB = 1 << 30
CHUNK_ROWS = 1 << 18  # more makes nothing faster
GPU_K = 2048  # FAISS on a GPU finds at most so many
GROUPS_A_WORKER = 4  # of shards: what a worker that dies loses, and how evenly the work ends

Chunk = tuple[np.ndarray, np.ndarray]  # positions in the corpus, int64 (n,); vectors as stored (n, dim)
Knn = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class TopK(NamedTuple):
    """The k best passages of each query, best first.

    Attributes:
        scores: (queries, k) float32; -inf where fewer than k passages were found.
        positions: (queries, k) int64, in the corpus; -1 where fewer were found.
    """

    scores: np.ndarray
    positions: np.ndarray


class TopKHeaps:
    """The k best passages of each query so far: FAISS's heaps (`faiss.ResultHeap`), one a query.

    Of equal scores the earlier passages stay. A heap drops the smallest number first, so it keeps -2 - position; -1,
    an empty place, stays -1.
    """

    def __init__(self, queries: int, k: int) -> None:
        import faiss

        self._heaps = faiss.ResultHeap(queries, k, keep_max=True)

    @property
    def floor(self) -> np.ndarray:
        """The lowest score kept for each query, (queries,): a passage below it does not count."""
        return self._heaps.D[:, 0].copy()

    def add(self, scores: np.ndarray, positions: np.ndarray) -> None:
        """Takes in more candidates, both (queries, any), each of a query's passages once."""
        self._heaps.add_result(scores, -2 - positions)
        # A heap lets a candidate in only above its lowest score: those that equal it still have to be compared, unless
        # it is the lowest one itself.
        lowest = scores == self._heaps.D[:, :1]
        alone = positions[np.arange(len(lowest)), lowest.argmax(axis=1)] == -2 - self._heaps.I[:, 0]
        count = lowest.sum(axis=1)
        for query in np.flatnonzero((count > 1) | ((count == 1) & ~alone)):
            self._keep_first_of_equals(query, positions[query, lowest[query]])

    def _keep_first_of_equals(self, query: int, candidates: np.ndarray) -> None:
        scores, kept = self._heaps.D[query], self._heaps.I[query]
        places = np.flatnonzero(scores == scores[0])
        equals = np.union1d(-2 - kept[places], candidates)[: len(places)]
        kept[places] = np.sort(-2 - equals)  # the lowest number comes first, as in the heap

    def finish(self) -> TopK:
        """The passages, best first; nothing can be added afterwards."""
        self._heaps.finalize()
        scores, positions = self._heaps.D, -2 - self._heaps.I
        scores[positions < 0] = -np.inf
        return TopK(scores, positions)


def search_shards(
    queries: np.ndarray,
    shards: list[Shard],
    store: PassageStore,
    k: int,
    max_bytes: float,
    knns: list[Knn] | None = None,
    workers: WorkerOptions | None = None,
) -> TopK:
    """Exact search over all shards, which are of the whole corpus.

    Of several workers each searches some of the shards, not for some of the questions: reading the vectors takes most
    of the time, and so each is read once. The driver holds the top k of all questions so far, and those of a few
    groups of shards.

    Args:
        queries: float32, (queries, dim).
        shards: from `open_shards`.
        store: the passages; gives each id its position.
        k: passages wanted a query.
        max_bytes: bound on the memory that the search takes in a worker, beside the queries and their results.
        knns: what searches a chunk, one a device; None finds the GPUs, else takes the CPU.
        workers: None, or one, is this process itself, with all its devices.

    Raises:
        UserError: a vector's dimension is not the queries', an id is of no passage, or a passage has no vector.
    """
    if workers is None or workers.num_workers == 1:
        found, seen = search_some(queries, shards, store, k, max_bytes, knns)
        require_all(seen, store)
        return found
    size = -(-len(shards) // (GROUPS_A_WORKER * workers.num_workers))
    groups = [shards[start : start + size] for start in range(0, len(shards), size)]
    heaps, total = TopKHeaps(len(queries), min(k, len(store))), 0
    results = map_chunks(partial(ShardSearcher, queries, store.folder, k, max_bytes), groups, workers)
    for found, seen in ProgressBar(results, total=len(groups), unit="group", desc="shards"):
        heaps.add(*found)
        total += seen
    require_all(total, store)
    return heaps.finish()


def search_some(
    queries: np.ndarray,
    shards: list[Shard],
    store: PassageStore,
    k: int,
    max_bytes: float,
    knns: list[Knn] | None = None,
) -> tuple[TopK, int]:
    """`search_shards` over some of the corpus, and how many vectors of passages with a text there were."""
    knns = knns or faiss_knns()
    k = min(k, len(store))
    dim = queries.shape[1]
    size = min(len(store), chunk_rows(len(queries), dim, k, max_bytes, len(knns)))
    chunks = shard_chunks(shards, store, dim, size)
    heaps = TopKHeaps(len(queries), k)
    devices, seen = [(knn, np.empty((size, dim), "float32")) for knn in knns], 0
    with ThreadPoolExecutor(len(devices)) as pool:
        running = deque()
        for number, (positions, vectors) in enumerate(without_empty(chunks, store.empty)):
            seen += len(positions)
            if len(running) == len(devices):
                heaps.add(*running.popleft().result())
            device = devices[number % len(devices)]
            running.append(pool.submit(search_chunk, device, queries, vectors, positions, k, heaps.floor))
        for search in running:
            heaps.add(*search.result())
    return heaps.finish(), seen


class ShardSearcher:
    """A worker (common.parallel): some shards -> the top k of all queries in them, and how many vectors they hold."""

    def __init__(self, queries: np.ndarray, store_folder: Path, k: int, max_bytes: float) -> None:
        self.queries, self.k, self.max_bytes = queries, k, max_bytes
        self.store = PassageStore(store_folder)

    def __call__(self, shards: list[Shard]) -> tuple[TopK, int]:
        return search_some(self.queries, shards, self.store, self.k, self.max_bytes)


def chunk_rows(queries: int, dim: int, k: int, max_bytes: float, devices: int = 1) -> int:
    """Vectors a chunk, so that all that is in memory at a time keeps within `max_bytes`: the chunks' rows, which may
    be stored as float32, and the results.

    Raises:
        UserError: the results alone need more.
    """
    # The heaps and what adding to them takes; on each device the candidates: scores, rows and positions.
    results = (60 + 20 * devices) * queries * (k + 1)
    a_row = row_bytes(dim, devices)
    rows = int((max_bytes - results) // a_row)
    if rows < 1:
        raise UserError(
            f"--max_memory: the results of {queries} questions at --n_docs {k} alone need "
            f"{(results + a_row) / GIB:.2g} GiB; give more, or search fewer questions at once"
        )
    return min(rows, CHUNK_ROWS)


def row_bytes(dim: int, devices: int) -> int:
    """What a vector of a chunk takes: on each device as stored and as float32, and of the next chunk as stored."""
    return (4 + 8 * devices) * dim + 64  # 64: its id and position


def shard_chunks(shards: list[Shard], store: PassageStore, dim: int, rows: int) -> Iterator[Chunk]:
    """The shards' vectors, at most `rows` at a time, with the positions of their passages, and a bar over these.

    Raises:
        UserError: a vector's dimension is not `dim`, or an id is of no passage of the store.
    """
    with ProgressBar(total=len(store), unit="passage", unit_scale=True, desc="search") as bar:
        for shard in shards:
            positions, vectors = shard.place(store)
            if vectors.shape[1] != dim:
                raise UserError(f"{shard.path}: vectors of {vectors.shape[1]} dimensions, the encoder makes {dim}")
            for start in range(0, len(vectors), rows):
                part = slice(start, start + rows)
                yield positions[part], rows_of(vectors, part)
                bar.update(len(positions[part]))


def without_empty(chunks: Iterable[Chunk], empty: np.ndarray) -> Iterator[Chunk]:
    """The chunks without the passages at the positions `empty`."""
    for positions, vectors in chunks:
        filled = np.isin(positions, empty, invert=True)
        if not filled.all():
            positions, vectors = positions[filled], vectors[filled]
        if len(positions):
            yield positions, vectors


def search_chunk(
    device: tuple[Knn, np.ndarray],
    queries: np.ndarray,
    vectors: np.ndarray,
    positions: np.ndarray,
    k: int,
    floor: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and positions of a chunk's top k, (queries, at most k).

    Of equal scores in the last places it takes the first passages, unless they are below `floor` (queries,), the
    scores that a passage must reach to count.

    Args:
        device: what searches, and a buffer for the vectors in float32.
        vectors: as stored, (rows, dim).
        positions: of the rows' passages.
    """
    knn, buffer = device
    vectors = as_float32(vectors, buffer)
    k = min(k, len(vectors))
    wide = min(k + 1, len(vectors))
    scores, rows = knn(queries, vectors, wide)
    if wide > k:
        for query in np.flatnonzero((scores[:, k] == scores[:, k - 1]) & (scores[:, k] >= floor)):
            _take_first_of_equals(queries[query], vectors, positions, scores[query, :k], rows[query, :k])
    return scores[:, :k], positions[rows[:, :k]]


def _take_first_of_equals(
    query: np.ndarray, vectors: np.ndarray, positions: np.ndarray, scores: np.ndarray, rows: np.ndarray
) -> None:
    """FAISS keeps any of the rows that tie for the last places: puts the first passages of them there."""
    all_scores = vectors @ query
    equals = np.flatnonzero(all_scores == all_scores[rows[-1]])
    equals = equals[np.argsort(positions[equals])]
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
        return in_fitting_parts(
            lambda queries, vectors, k: faiss.knn_gpu(resources, queries, vectors, k, metric=metric, device=device)
        )

    return [on_gpu(device) for device in range(gpu_count())]


def in_fitting_parts(search: Knn) -> Knn:
    """`search` for as many queries at once as its memory holds; what was too many is remembered.

    Raises:
        torch.OutOfMemoryError: one query alone does not fit.
    """
    budget = BatchBudget(None)

    def in_parts(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        def forward(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
            try:
                return search(queries[rows[0] : rows[-1] + 1], vectors, k)
            except RuntimeError as problem:  # FAISS has no class of its own for it
                if "out of memory" in str(problem):
                    raise torch.OutOfMemoryError(str(problem)) from None
                raise

        if not len(queries):
            return search(queries, vectors, k)
        parts = [found for _, found in budget.run([1] * len(queries), forward)]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    return in_parts


def gpu_count() -> int:
    """GPUs that this FAISS can use."""
    import faiss

    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
