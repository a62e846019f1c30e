"""BM25 over the passage store (bm25s: Lù, 2024), kept beside it, with the same results as dense search gives."""

import logging
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import regex

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import make_once
from gainRAG.common.progress import ProgressBar
from gainRAG.retrieval_engine.exact_search import TopK
from gainRAG.retrieval_engine.passages import PassageStore

logger = logging.getLogger(__name__)

# Letters, digits and the marks on them. Han and Hiragana are written without spaces: each character is a word, as in
# Lucene's tokenizer.
WORD = regex.compile(r"[\p{Han}\p{Hiragana}]\p{M}*|[[\p{L}\p{N}\p{M}_]--[\p{Han}\p{Hiragana}]]+", regex.V1)


def words(text: str) -> list[str]:
    """Lower-cased words, without the function words that Lucene leaves out of English text."""
    from bm25s.stopwords import STOPWORDS_EN

    return [word for word in WORD.findall(unicodedata.normalize("NFKC", text).lower()) if word not in STOPWORDS_EN]


def search_bm25(questions: list[str], store: PassageStore, k: int) -> TopK:
    """The k best passages (title and text) of each question; passages that share no word with it are left out.

    Raises:
        UserError: the index is damaged, or cannot be written.
    """
    index = open_bm25(store)
    k = min(k, len(store))
    scores, positions = np.full((len(questions), k), -np.inf, "float32"), np.full((len(questions), k), -1)
    for row, question in enumerate(ProgressBar(questions, unit="question", desc="BM25")):
        known = [word for word in words(question) if word in index.vocab_dict]
        if known:
            all_scores = index.get_scores(known)
            all_scores[store.empty] = 0
            best = _best_positions(all_scores, k)
            positions[row, : len(best)], scores[row, : len(best)] = best, all_scores[best]
    return TopK(scores, positions)


def _best_positions(scores: np.ndarray, k: int) -> np.ndarray:
    """The positions of the k highest scores above 0, best first; of equal ones, in the order of the corpus."""
    lowest = np.partition(scores, -k)[-k]
    candidates = np.flatnonzero((scores >= lowest) & (scores > 0))
    return candidates[np.lexsort((candidates, -scores[candidates]))][:k]


def open_bm25(store: PassageStore):
    """The index of the store's passages, made first if there is none.

    Raises:
        UserError: it is damaged, or cannot be written.
    """
    import bm25s

    folder = store.folder / "bm25_words"
    make_once(folder, folder.exists, partial(_make, store), "--passages_store FOLDER puts store and index elsewhere")
    try:
        return bm25s.BM25.load(folder, mmap=True)  # reads JSON, and arrays without pickles
    except Exception:  # another package's reader: damaged files give almost any class
        raise UserError(f"{folder}: the BM25 index is damaged; delete the folder, and it is made again") from None


def _make(store: PassageStore, folder: Path) -> None:
    import bm25s

    logger.info("making the BM25 index of %d passages, once", len(store))
    vocabulary: dict[str, int] = {}
    passages = ProgressBar(store, unit="passage", desc="BM25 index")
    texts = (f"{passage['title']} {passage['text']}" for passage in passages)
    tokens = [
        np.array([vocabulary.setdefault(word, len(vocabulary)) for word in passage], "int32")
        for passage in map(words, texts)
    ]
    if not vocabulary:
        raise UserError(f"{store.folder}: no passage has a word that BM25 could look for")
    index = bm25s.BM25()
    index.index((tokens, vocabulary))
    index.save(folder)
