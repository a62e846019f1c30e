"""What a retrieval needs, before it is run: passages, vectors, memory and disk."""

from pathlib import Path

from gainRAG.common.cli import UserError
from gainRAG.retrieval_engine.corpus import corpus_file, read_corpus
from gainRAG.retrieval_engine.exact_search import CHUNK_ROWS, GIB, gpu_count, row_bytes
from gainRAG.retrieval_engine.faiss_index import SearchOptions, factory_index
from gainRAG.retrieval_engine.modeling import encoder_dim
from gainRAG.retrieval_engine.passages import is_current, open_store, store_folder
from gainRAG.retrieval_engine.vectors import Shard, open_shards

STORE_BYTES = 48  # a passage, beside its text: offsets, hash, position
BM25_BYTES = 8 * 70  # a passage of 100 words has about 70 different ones, each a score and a number
SEARCH_FLOOR = 0.5 * GIB  # Python, PyTorch and FAISS themselves


def plan(
    passages: str, passages_store: str | None, no_title: bool, encoder: str, search: SearchOptions | None
) -> list[tuple[str, str]]:
    """(what, how much) of a retrieval; loads no weights and no vectors.

    Args:
        passages, passages_store, no_title: as `open_store` takes them.
        encoder: of the questions, as `encoder_dim` takes it.
        search: None for BM25.

    Raises:
        UserError: no corpus, no embeddings folder, or no such index type.
    """
    corpus = corpus_file(passages)
    folder = store_folder(corpus, passages_store)
    if is_current(folder, corpus, no_title):
        count = len(open_store(corpus, passages_store, no_title))
        text = sum(file.stat().st_size for file in folder.iterdir())
    else:
        count, text = _count_passages(corpus)
    rows = [("passages", f"{count:,}"), ("disk", f"passage store {_size(text)}")]
    if search is None:
        return [*rows, ("disk", f"BM25 index about {_size(count * BM25_BYTES)}"),
                ("RAM", f"about {_size(SEARCH_FLOOR + 2 * count * BM25_BYTES)} while it is made")]  # fmt: skip
    shards = open_shards(search.embeddings) if search.embeddings else []
    if shards and all(shard.count for shard in shards):
        vectors, dim = sum(shard.count for shard in shards), shards[0].dim
    else:  # of pickles nobody has read, one a passage and the encoder's
        vectors, dim = count, encoder_dim(encoder)
    rows += [
        ("vectors", f"{vectors:,} of {dim} dimensions, float16"),
        ("disk", f"embeddings {_size(sum(shard.path.stat().st_size for shard in shards) or 2 * vectors * dim)}"),
    ]
    return rows + _search_needs(search, shards, vectors, dim)


def _search_needs(search: SearchOptions, shards: list[Shard], vectors: int, dim: int) -> list[tuple[str, str]]:
    path = search.index_path
    if path and path.exists():
        size = path.stat().st_size
        return [("disk", f"index {_size(size)} (there)"),
                ("RAM", f"{_size(SEARCH_FLOOR)} and what is read of {_size(size)}")]  # fmt: skip
    if path:
        size = vectors * vector_bytes(search.index_type, dim)
        return [("disk", f"index about {_size(size)}"),
                ("RAM", f"about {_size(SEARCH_FLOOR + size + search.max_bytes)} while it is made")]  # fmt: skip
    gpus = gpu_count()
    rows = min(vectors, CHUNK_ROWS)
    held = max((shard.path.stat().st_size for shard in shards if not shard.ids_path), default=0)
    needed = min(search.max_bytes, rows * row_bytes(dim, max(gpus, 1)))
    ram = f"at most {_size(SEARCH_FLOOR + needed + held)} (--max_memory {search.max_bytes / GIB:g} GiB"
    ram += f", one pickled shard {_size(held)})" if held else ")"
    return [
        ("RAM", ram),
        ("VRAM", f"{_size(1.5 * GIB + 4 * rows * dim)} on each of {gpus} GPUs" if gpus else "none (no GPU)"),
    ]


def _count_passages(corpus: Path) -> tuple[int, int]:
    count = size = 0
    for _, passage_id, title, text, _ in read_corpus(corpus):
        count += 1
        size += STORE_BYTES + len(passage_id) + len(title.encode()) + len(text.encode())
    return count, size


def vector_bytes(factory: str, dim: int) -> float:
    """Bytes a vector takes in an index of that type (with its number and, in HNSW, its links)."""
    import faiss

    index = factory_index(factory, dim)
    bottom = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    if isinstance(bottom, faiss.IndexHNSW):
        return bottom.storage.sa_code_size() + 4 * 1.1 * bottom.hnsw.nb_neighbors(0)
    try:
        return bottom.sa_code_size() + 8
    except RuntimeError:
        raise UserError(f"--plan: the size of an index of type {factory} is not known beforehand") from None


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / GIB * 1024:.1f} MiB"
