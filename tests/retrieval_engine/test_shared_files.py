"""What several processes and users share: made once, whole under its name or not there, one line where it cannot be."""

import errno
import fcntl
import os
import threading
import time

import numpy as np
import pytest

from gainRAG.common import jsonl
from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import make_once
from gainRAG.retrieval_engine import bm25, faiss_index
from gainRAG.retrieval_engine.faiss_index import SearchOptions, load_or_build_index
from gainRAG.retrieval_engine.passages import open_store
from gainRAG.retrieval_engine.vectors import open_shards, save_shard

PASSAGES = [{"id": str(number), "title": "", "text": f"word{number} and more"} for number in range(40)]


def at_once(call, count=3):
    """What `count` threads get that call at the same time; flock tells their open files apart."""
    results = []
    threads = [threading.Thread(target=lambda: results.append(call())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def refuse_locks(monkeypatch, code):
    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


def refuse_to_create(monkeypatch, code):
    def opener(path, flags):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(jsonl, "_open_or_create", opener)


@pytest.fixture
def counted(monkeypatch):
    """Makes a function of a module slow, and counts its calls."""

    def count(module, name):
        made, original = [], getattr(module, name)

        def slow(*arguments):
            made.append(name)
            time.sleep(0.2)
            return original(*arguments)

        monkeypatch.setattr(module, name, slow)
        return made

    return count


@pytest.fixture
def embeddings(write_jsonl, tmp_path):
    """(store, shards) of PASSAGES."""
    store = open_store(write_jsonl("corpus.jsonl", PASSAGES))
    vectors = np.random.default_rng(0).standard_normal((len(PASSAGES), 8))
    ids = [passage["id"] for passage in PASSAGES]
    write_jsonl("shards.jsonl", [save_shard(tmp_path, 0, ids, vectors, store.fingerprint, 0)])
    return store, open_shards(tmp_path)


@pytest.mark.parametrize("locks", [True, False])
def test_it_is_made_whole_whoever_else_makes_it(tmp_path, monkeypatch, locks):
    if not locks:
        refuse_locks(monkeypatch, errno.ENOSYS)
    target = tmp_path / "shared"

    def make(path):
        path.mkdir()
        for part in range(5):
            time.sleep(0.01)
            (path / str(part)).write_text("x")

    at_once(lambda: make_once(target, target.exists, make, "--elsewhere"))
    assert sorted(file.name for file in target.iterdir()) == list("01234")
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_dead_process_left_is_removed_and_a_failure_leaves_nothing(tmp_path):
    target = tmp_path / "shared"
    (tmp_path / "shared.0a1b2c3d.partial").mkdir()

    def fail(path):
        path.write_text("half")
        raise UserError("bad input")

    with pytest.raises(UserError, match="bad input"):
        make_once(target, target.exists, fail, "--elsewhere")
    assert [file.name for file in tmp_path.iterdir()] == ["shared.lock"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_names_the_flag(monkeypatch, embeddings, tmp_path, code):
    pytest.importorskip("bm25s")
    store, shards = embeddings
    refuse_to_create(monkeypatch, code)
    with pytest.raises(
        UserError, match=r"bm25_words: cannot be written \(.+\); --passages_store FOLDER puts store and index"
    ):
        bm25.open_bm25(store)
    search = SearchOptions(tmp_path, "SQfp16", tmp_path / "SQfp16.faiss")
    with pytest.raises(UserError, match=r"SQfp16.faiss: cannot be written \(.+\); --index_path FILE puts the index"):
        load_or_build_index(search, shards, store, 8)
    assert open_store(tmp_path / "corpus.jsonl").count == 40  # it is there: nothing has to be written


def test_two_bm25_retrievals_make_one_index(embeddings, counted):
    pytest.importorskip("bm25s")
    store, _ = embeddings
    made = counted(bm25, "_make")
    found = at_once(lambda: bm25.search_bm25(["word7"], store, 1).positions.tolist())
    assert found == [[[7]]] * 3
    assert len(made) == 1
    assert not list(store.folder.glob("*.partial"))


def test_two_retrievals_build_one_faiss_index(embeddings, counted, tmp_path):
    store, shards = embeddings
    made = counted(faiss_index, "build_index")
    search = SearchOptions(tmp_path, "SQfp16", tmp_path / "SQfp16.faiss")
    assert at_once(lambda: load_or_build_index(search, shards, store, 8).ntotal) == [40] * 3
    assert len(made) == 1
