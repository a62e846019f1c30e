"""BM25 over the passage store (bm25s: Lù, 2024), kept beside it, with the same results as dense search gives."""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gainRAG.common.cli import UserError
from gainRAG.retrieval_engine.exact_search import Best
from gainRAG.retrieval_engine.passages import PassageStore

logger = logging.getLogger(__name__)

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-cased words, without the function words that Lucene leaves out of English text."""
    from bm25s.stopwords import STOPWORDS_EN

    return [word for word in WORD.findall(text.lower()) if word not in STOPWORDS_EN]


def search_bm25(questions: list[str], store: PassageStore, k: int) -> Best:
    """The k best passages (title and text) of each question; passages that share no word with it are left out.

    Raises:
        UserError: the index is damaged.
    """
    index = _index(store)
    best = Best(len(questions), min(k, len(store)))
    for row, question in enumerate(tqdm(questions, unit="question", desc="BM25")):
        known = [word for word in words(question) if word in index.vocab_dict]
        if known:
            _keep(best, row, index.get_scores(known))
    return best


def _keep(best: Best, row: int, scores: np.ndarray) -> None:
    last = np.partition(scores, -best.k)[-best.k]
    candidates = np.flatnonzero((scores >= last) & (scores > 0))
    order = candidates[np.lexsort((candidates, -scores[candidates]))][: best.k]
    best.positions[row, : len(order)] = order
    best.scores[row, : len(order)] = scores[order]


def _index(store: PassageStore):
    import bm25s

    folder = store.folder / "bm25"
    if not folder.exists():
        _make(bm25s, store, folder)
    try:
        return bm25s.BM25.load(folder, mmap=True)  # reads JSON, and arrays without pickles
    except Exception:  # another package's reader: damaged files give almost any class
        raise UserError(f"{folder}: the BM25 index is damaged; delete the folder, and it is made again") from None


def _make(bm25s, store: PassageStore, folder: Path) -> None:
    logger.info("making the BM25 index of %d passages, once", len(store))
    vocabulary: dict[str, int] = {}
    tokens = [
        np.array([vocabulary.setdefault(word, len(vocabulary)) for word in passage], "int32")
        for passage in _passage_words(store)
    ]
    index = bm25s.BM25()
    index.index((tokens, vocabulary))
    partial = folder.with_name("bm25.partial")
    shutil.rmtree(partial, ignore_errors=True)
    index.save(partial)
    partial.rename(folder)


def _passage_words(store: PassageStore) -> Iterator[list[str]]:
    for passage in tqdm(store, unit="passage", desc="BM25 index"):
        yield words(f"{passage['title']} {passage['text']}")
