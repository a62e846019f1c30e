"""Exact search against faiss.IndexFlatIP, whatever the shards and the memory; other indexes reopened from disk."""

import dataclasses
import random

import faiss
import numpy as np
import pytest
from conftest import each

from gainRAG.common.cli import UserError
from gainRAG.common.parallel import WorkerOptions, workers_a_machine
from gainRAG.retrieval_engine.exact_search import (
    TopKHeaps,
    chunk_rows,
    faiss_knns,
    in_fitting_parts,
    search_shards,
)
from gainRAG.retrieval_engine.faiss_index import SearchOptions, load_or_build_index, open_index, search_index
from gainRAG.retrieval_engine.passages import open_store
from gainRAG.retrieval_engine.plan import vector_bytes
from gainRAG.retrieval_engine.vectors import check_shards, open_shards, save_shard

GIB = 1 << 30


@pytest.fixture
def corpus(write_jsonl, tmp_path):
    """Makes a store and shards of the given sizes from vectors, one passage each; gives (store, shards)."""

    def make(vectors, sizes, ids=None, known=False):
        ids = ids or [f"p{number}" for number in range(len(vectors))]
        store = open_store(
            write_jsonl("corpus.jsonl", [{"id": f"p{i}", "title": "", "text": str(i)} for i in range(len(vectors))])
        )
        starts = np.cumsum([0, *sizes])
        lines = [
            save_shard(
                tmp_path,
                number,
                ids[start:end],
                vectors[start:end],
                *([store.fingerprint, int(start)] if known else []),
            )
            for number, (start, end) in enumerate(zip(starts[:-1], starts[1:], strict=True))
        ]
        write_jsonl("shards.jsonl", lines)
        return store, open_shards(tmp_path)

    return make


def random_vectors(count, dim=24, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype("float16").astype("float32")


def flat(queries, vectors, k):
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index.search(queries, k)


def bytes_for(rows, queries, k):
    return 80 * len(queries) * (k + 1) + rows * (12 * queries.shape[1] + 64)


@each("sizes", [[500], [1, 299, 3, 197], [100] * 5])
@each("k", [1, 10, 250, 500, 600])
@each("rows", [7, 64, 10_000])
@each("known", [False, True])
def test_equals_index_flat_ip(corpus, sizes, k, rows, known):
    vectors, queries = random_vectors(500), random_vectors(9, seed=1)
    store, shards = corpus(vectors, sizes, known=known)
    k = min(k, 500)
    assert chunk_rows(len(queries), 24, k, bytes_for(rows, queries, k)) == rows
    best = search_shards(queries, shards, store, k, bytes_for(rows, queries, k))
    scores, positions = flat(queries, vectors, k)
    np.testing.assert_allclose(best.scores, scores, atol=1e-3)
    assert np.array_equal(best.positions, positions)


def test_float32_vectors_from_a_published_pickle(corpus, tmp_path):
    import pickle

    vectors, queries = random_vectors(60) + np.float32(1e-5), random_vectors(3, seed=1)
    store, _ = corpus(vectors, [60])
    (tmp_path / "old").mkdir()
    for number in range(2):
        part = slice(30 * number, 30 * number + 30)
        ids = [f"p{i}" for i in range(60)][part]
        (tmp_path / "old" / f"passages_0{number}").write_bytes(pickle.dumps((ids, vectors[part]), 4))
    best = search_shards(queries, open_shards(tmp_path / "old"), store, 10, GIB)
    assert np.array_equal(best.positions, flat(queries, vectors, 10)[1])


@each("rows", [5, 33, 1000])
@each("k", [1, 4, 25, 60])
def test_ties_are_in_the_order_of_the_passages(corpus, k, rows):
    """Small whole numbers: products are exact, and most scores occur many times."""
    random = np.random.default_rng(2)
    vectors = random.integers(-1, 2, (200, 4)).astype("float32")
    queries = random.integers(-2, 3, (6, 4)).astype("float32")
    store, shards = corpus(vectors, [90, 110])
    best = search_shards(queries, shards, store, k, bytes_for(rows, queries, k))
    scores = queries @ vectors.T
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert np.array_equal(best.positions, wanted)
    assert np.array_equal(best.scores, np.take_along_axis(scores, wanted, axis=1))


def test_several_devices_share_the_shards(corpus):
    vectors, queries = random_vectors(400), random_vectors(5, seed=1)
    store, shards = corpus(vectors, [130, 270])
    used = []

    def device(name):
        def knn(*arguments):
            used.append(name)
            return faiss_knns()[0](*arguments)

        return knn

    best = search_shards(queries, shards, store, 20, bytes_for(30, queries, 20), [device("a"), device("b")])
    assert np.array_equal(best.positions, flat(queries, vectors, 20)[1])
    assert set(used) == {"a", "b"}


def test_a_device_that_fails_is_heard(corpus):
    store, shards = corpus(random_vectors(50), [50])

    def broken(*_):
        raise RuntimeError("no memory on device 1")

    with pytest.raises(RuntimeError, match="no memory on device 1"):
        search_shards(random_vectors(2), shards, store, 3, GIB, [broken])


def test_another_order_than_the_corpus(corpus):
    vectors, queries = random_vectors(40), random_vectors(4, seed=1)
    order = np.random.default_rng(3).permutation(40)
    store, shards = corpus(vectors[order], [25, 15], [f"p{i}" for i in order])
    assert np.array_equal(search_shards(queries, shards, store, 5, GIB).positions, flat(queries, vectors, 5)[1])


def test_shards_of_the_store_itself_need_no_ids(corpus, tmp_path):
    vectors, queries = random_vectors(40), random_vectors(4, seed=1)
    store, shards = corpus(vectors, [25, 15], known=True)
    assert shards[1].passages == store.fingerprint
    for shard in shards:
        shard.ids_path.unlink()
    check_shards(shards, 24, store)
    assert np.array_equal(search_shards(queries, shards, store, 5, GIB).positions, flat(queries, vectors, 5)[1])


def test_shards_of_another_store_go_by_their_ids(corpus):
    vectors, queries = random_vectors(40), random_vectors(4, seed=1)
    store, shards = corpus(vectors[::-1], [25, 15], [f"p{i}" for i in reversed(range(40))], known=True)
    shards = [dataclasses.replace(shard, passages="another") for shard in shards]
    assert np.array_equal(search_shards(queries, shards, store, 5, GIB).positions, flat(queries, vectors, 5)[1])


def test_vectors_of_another_corpus_or_of_a_part_are_refused(corpus):
    vectors, queries = random_vectors(40), random_vectors(4, seed=1)
    store, shards = corpus(vectors, [25, 15], known=True)
    check_shards(shards, 24, store)
    with pytest.raises(UserError, match=r"passages_00000.npy: vectors of another corpus, or of this one before"):
        check_shards([dataclasses.replace(shard, passages="another") for shard in shards], 24, store)
    for call in (
        lambda: check_shards(shards[:1], 24, store),
        lambda: search_shards(queries, shards[:1], store, 5, GIB),
    ):
        with pytest.raises(UserError, match="15 of the corpus's 40 passages have no vector"):
            call()


def test_a_manifest_that_goes_beyond_the_corpus(corpus):
    store, shards = corpus(random_vectors(4), [2, 2], known=True)
    late = dataclasses.replace(shards[1], first=3)
    with pytest.raises(UserError, match=r"passages_00001.npy: passages from 3 on, of 4; embed the passages again"):
        check_shards([late], 24, store)


def test_an_unknown_id_and_a_wrong_dimension_are_named(corpus):
    store, shards = corpus(random_vectors(4), [2, 2], ["p0", "p1", "p2", "stranger"])
    for call in (
        lambda: search_shards(random_vectors(1), shards, store, 2, GIB),
        lambda: check_shards(shards, 24, store),
    ):
        with pytest.raises(UserError, match=r"passages_00001.npy: id 'stranger' is of no passage of the corpus"):
            call()
    for call in (
        lambda: search_shards(random_vectors(1, dim=8), shards, store, 2, GIB),
        lambda: check_shards(shards, 8, store),
    ):
        with pytest.raises(UserError, match=r"passages_00000.npy: vectors of 24 dimensions, the encoder makes 8"):
            call()


def test_too_little_memory_says_how_much(corpus):
    store, shards = corpus(random_vectors(4), [4])
    with pytest.raises(UserError, match=r"--max_memory: the results of 2 questions at --n_docs 3 alone need .* GiB"):
        search_shards(random_vectors(2), shards, store, 3, 100)


@each("k", [1, 3, 8, 40])
def test_heaps_keep_the_top_k_whatever_the_order(k):
    """Few different scores, so that many tie at the last place; candidates of later passages may come first."""
    random = np.random.default_rng(k)
    scores = random.integers(0, 4, (5, 60)).astype("float32")
    order = random.permutation(60)
    heaps = TopKHeaps(5, k)
    for start in range(0, 60, 7):
        part = order[start : start + 7]
        heaps.add(scores[:, part], np.tile(part, (5, 1)))
    heaps.add(np.full((5, 2), -np.inf, "float32"), np.full((5, 2), -1))
    found = heaps.finish()
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert np.array_equal(found.positions, wanted)
    assert np.array_equal(found.scores, np.take_along_axis(scores, wanted, axis=1))


def test_places_without_a_passage_are_empty():
    heaps = TopKHeaps(1, 3)
    heaps.add(np.array([[1.0, 2.0]], "float32"), np.array([[3, 9]]))
    found = heaps.finish()
    assert found.positions.tolist() == [[9, 3, -1]]
    assert found.scores.tolist() == [[2, 1, -np.inf]]


def test_ties_of_embeddings_in_another_order(corpus):
    random = np.random.default_rng(5)
    vectors = random.integers(-1, 2, (80, 3)).astype("float32")
    queries = random.integers(-2, 3, (6, 3)).astype("float32")
    order = random.permutation(80)
    store, shards = corpus(vectors[order], [50, 30], [f"p{i}" for i in order])
    best = search_shards(queries, shards, store, 9, bytes_for(11, queries, 9))
    assert np.array_equal(best.positions, np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :9])


# --- FAISS indexes


def options(path, factory, **more):
    return SearchOptions(path.parent, factory, path, max_bytes=GIB, **more)


@each("factory", ["IVF4,Flat", "SQfp16", "HNSW16", "OPQ4_16,IVF4,PQ4x2", "IVF4,SQfp16", "Flat"])
def test_an_index_is_made_once_and_reopened(corpus, tmp_path, factory):
    vectors, queries = random_vectors(600), random_vectors(8, seed=1)
    store, shards = corpus(vectors, [250, 350])
    path = tmp_path / "made.faiss"
    search = options(path, factory, search_params="nprobe=4" if "IVF" in factory else "")
    first = search_index(queries, load_or_build_index(search, shards, store, 24), 10)
    made = path.stat().st_mtime_ns
    again = search_index(queries, load_or_build_index(search, shards, store, 24), 10)
    assert path.stat().st_mtime_ns == made
    assert np.array_equal(first.positions, again.positions)
    if "PQ" not in factory:
        hits = [len(set(a) & set(b)) for a, b in zip(first.positions, flat(queries, vectors, 10)[1], strict=True)]
        assert sum(hits) >= 0.9 * 80
    assert not list(tmp_path.glob("*.partial"))


def test_an_index_of_other_embeddings_is_refused_and_made_anew(corpus, tmp_path):
    vectors = random_vectors(300)
    store, shards = corpus(vectors, [300])
    path = tmp_path / "made.faiss"
    load_or_build_index(options(path, "IVF2,Flat"), shards, store, 24)
    with pytest.raises(UserError, match=r"made.faiss: was made of another type or from other embeddings; --overwrite"):
        load_or_build_index(options(path, "IVF4,Flat"), shards, store, 24)
    store, shards = corpus(-vectors, [300])
    with pytest.raises(UserError, match="from other embeddings"):
        load_or_build_index(options(path, "IVF2,Flat"), shards, store, 24)
    index = load_or_build_index(options(path, "IVF2,Flat", overwrite=True), shards, store, 24)
    assert index.ntotal == 300


def test_a_ready_made_index_by_distance(corpus, tmp_path):
    vectors, queries = random_vectors(50), random_vectors(2, seed=1)
    store, _ = corpus(vectors, [50])
    index = faiss.IndexFlatL2(24)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "ready.faiss"))
    best = search_index(queries, open_index(tmp_path / "ready.faiss", 24, store), 5)
    assert (np.diff(best.scores) <= 0).all()
    assert best.positions[0, 0] == np.argmin(((vectors - queries[0]) ** 2).sum(1))


@pytest.mark.parametrize("factory", ["IVF4,PQ4x2", "PQ4x2", "HNSW8"])
def test_a_damaged_index_is_found_before_faiss_reads_it(corpus, tmp_path, factory):
    """FAISS crashes on some of these."""
    store, shards = corpus(random_vectors(300), [300])
    path = tmp_path / "made.faiss"
    load_or_build_index(options(path, factory), shards, store, 24)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(40):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(whole))] ^= draw.randint(1, 255)
        path.write_bytes(content[: draw.choice([len(whole), draw.randrange(len(whole))])])
        with pytest.raises(UserError, match=r"made.faiss: is damaged, or not the index of made.faiss.settings.json"):
            load_or_build_index(options(path, factory), shards, store, 24)
    assert load_or_build_index(options(path, factory, overwrite=True), shards, store, 24).ntotal == 300


@pytest.mark.parametrize("size", [30, 40, 64])
def test_an_index_from_elsewhere_that_crashes_faiss_is_named(corpus, tmp_path, size):
    store, _ = corpus(random_vectors(300), [300])
    index = faiss.index_factory(24, "PQ8x4", faiss.METRIC_INNER_PRODUCT)
    index.train(random_vectors(300))
    index.add(random_vectors(300))
    path = tmp_path / "ready.faiss"
    faiss.write_index(index, str(path))
    assert open_index(path, 24, store).ntotal == 300
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"ready.faiss: is no FAISS index, or damaged \(.+\)$"):
        open_index(path, 24, store)


def test_what_faiss_finds_wrong_in_a_search_is_said():
    class Damaged:
        ntotal = 3

        def search(self, queries, k):
            raise RuntimeError("Error in search at f.cpp:1: Error: 'list < nlist' failed: list 9 of 4")

    with pytest.raises(UserError, match="the FAISS index is damaged .*list 9 of 4"):
        search_index(random_vectors(2), Damaged(), 2)


def test_bad_indexes_are_named(corpus, tmp_path):
    store, shards = corpus(random_vectors(50), [50])
    path = tmp_path / "i.faiss"
    with pytest.raises(UserError, match=r"--index_type Nonsense7: FAISS makes no such index for 24 dimensions"):
        load_or_build_index(options(path, "Nonsense7"), shards, store, 24)
    with pytest.raises(UserError, match=r"--index_type IVF64,Flat: cannot be trained on 50 vectors"):
        load_or_build_index(options(path, "IVF64,Flat"), shards, store, 24)
    with pytest.raises(UserError, match=r"i.faiss: no such index"):
        open_index(path, 24, store)
    path.write_bytes(b"not an index at all")
    with pytest.raises(UserError, match=r"i.faiss: is no FAISS index, or damaged"):
        open_index(path, 24, store)
    index = faiss.IndexFlatIP(24)
    index.add(random_vectors(60))
    faiss.write_index(index, str(path))
    with pytest.raises(UserError, match=r"i.faiss: an index of 24 dimensions, the encoder makes 32"):
        open_index(path, 32, store)
    with pytest.raises(UserError, match=r"i.faiss: vector 50 is of no passage; the corpus has 50"):
        open_index(path, 24, store)
    index = faiss.IndexFlatIP(24)
    index.add(random_vectors(49))
    faiss.write_index(index, str(path))
    with pytest.raises(UserError, match=r"1 of the corpus's 50 passages have no vector"):
        open_index(path, 24, store)
    index.add(random_vectors(1))
    faiss.write_index(index, str(path))
    with pytest.raises(UserError, match=r"--search_params nprobe=3: not a parameter"):
        open_index(path, 24, store, "nprobe=3")


@each("factory", ["Flat", "SQfp16", "IVF16,Flat", "IVF16,PQ8x4", "HNSW32"])
def test_the_planned_size_of_an_index_is_its_size(tmp_path, factory):
    vectors = random_vectors(1000, dim=64)
    index = faiss.index_factory(64, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    empty = faiss.serialize_index(index).nbytes
    index.add(vectors)
    size = (faiss.serialize_index(index).nbytes - empty) / len(vectors)
    assert vector_bytes(factory, 64) == pytest.approx(size, rel=0.15, abs=9)


def test_workers_of_one_machine_share_its_memory():
    assert workers_a_machine(WorkerOptions()) == 1
    assert workers_a_machine(WorkerOptions(num_workers=4)) == 4


def test_queries_that_memory_does_not_hold_are_searched_for_in_parts():
    random = np.random.default_rng(0)
    queries, vectors = random.standard_normal((11, 4), "float32"), random.standard_normal((30, 4), "float32")
    [knn], tried = faiss_knns(), []

    def small_memory(part, vectors, k):
        tried.append(len(part))
        if len(part) > 3:
            raise RuntimeError("Error in ... StandardGpuResources: CUDA error 2 out of memory")
        return knn(part, vectors, k)

    search = in_fitting_parts(small_memory)
    for _ in range(2):
        for found, expected in zip(search(queries, vectors, 5), knn(queries, vectors, 5), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert tried == [11, 5, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 1], "what was too many is not tried again"
    with pytest.raises(RuntimeError, match="broken"):
        in_fitting_parts(lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))(queries, vectors, 5)
