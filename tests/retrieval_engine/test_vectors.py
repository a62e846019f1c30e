"""Shards of vectors: ours come back; Contriever's pickles load without running anything."""

import os
import pickle

import numpy as np
import pytest
from conftest import each

from gainRAG.common.cli import UserError
from gainRAG.retrieval_engine.vectors import open_shards, read_published, save_shard

VECTORS = np.arange(12, dtype="float16").reshape(4, 3)
IDS = ["1", "2", "ü", "10"]


def published(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@each("protocol", [3, 4, 5])
@each("vectors", [VECTORS, VECTORS.astype(">f4"), np.asfortranarray(VECTORS)])
def test_a_published_pickle(tmp_path, protocol, vectors):
    path = published(tmp_path / "passages_00", (IDS, vectors), protocol)
    ids, found = read_published(path)
    assert ids == IDS
    assert found.dtype.newbyteorder("=") == vectors.dtype.newbyteorder("=")
    assert np.array_equal(found, vectors)


def test_number_ids_become_text(tmp_path):
    assert read_published(published(tmp_path / "passages_00", ([1, 2, 3, 4], VECTORS)))[0] == ["1", "2", "3", "4"]


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["ids", "vectors", "whole"])
def test_a_malicious_pickle_does_not_run(tmp_path, place):
    witness = tmp_path / "it_ran"
    bad = Malicious(os.mkdir, str(witness))
    content = {"ids": ([bad, "2", "3", "4"], VECTORS), "vectors": (IDS, bad), "whole": bad}[place]
    with pytest.raises(UserError, match=r"passages_00: refused: .* holds no posix\.mkdir"):
        read_published(published(tmp_path / "passages_00", content))
    assert not witness.exists()


@each(
    ("content", "message"),
    [
        (Malicious(eval, "1"), "builtins.eval"),
        (Malicious(np.load, "x"), "numpy.load"),
        ((IDS, {1, 2}), r"wanted \(list of ids"),
        ((IDS, np.array([[1], ["a"], [None], [2]], object)), "an array of object, wanted floats"),
        ((IDS, np.arange(12).reshape(4, 3)), "an array of int64, wanted floats"),
        ((IDS[:2], VECTORS), r"wanted \(list of ids"),
        (([1.5, 2, 3, 4], VECTORS), "an id is neither text nor a number"),
        ({"ids": IDS}, r"wanted \(list of ids"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=f"passages_00: .*{message}"):
        read_published(published(tmp_path / "passages_00", content))


@each("kept", [0, 10, 60, -30])
def test_a_damaged_pickle(tmp_path, kept):
    path = published(tmp_path / "passages_00", (IDS, VECTORS))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="passages_00"):
        read_published(path)


def test_shards_come_back(tmp_path, write_jsonl):
    lines = [save_shard(tmp_path, number, IDS, VECTORS + number) for number in range(2)]
    write_jsonl("shards.jsonl", lines)
    shards = open_shards(tmp_path)
    assert [(shard.count, shard.dim) for shard in shards] == [(4, 3)] * 2
    ids, vectors = shards[1].load()
    assert ids == IDS
    assert np.array_equal(vectors, VECTORS + 1)
    assert vectors.dtype == "float16"


def test_a_torn_shard(tmp_path, write_jsonl):
    write_jsonl("shards.jsonl", [save_shard(tmp_path, 0, IDS, VECTORS)])
    file = tmp_path / "passages_00000.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"passages_00000.npy: cannot be read .* embed the passages again"):
        open_shards(tmp_path)[0].load()


def test_a_shard_listed_twice(tmp_path, write_jsonl):
    lines = [save_shard(tmp_path, number, IDS, VECTORS + number) for number in range(2)]
    write_jsonl("shards.jsonl", [*lines, lines[0]])
    with pytest.raises(UserError, match=r"shards.jsonl: lists passages_00000.npy 2 times; embed"):
        open_shards(tmp_path)


def test_no_shards(tmp_path):
    with pytest.raises(UserError, match=r"none: no such folder"):
        open_shards(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds neither shards.jsonl .* nor passages_00"):
        open_shards(tmp_path)
    (tmp_path / "shards.jsonl.unfinished").write_text("")
    with pytest.raises(UserError, match="unfinished; run the same passage_embed command again"):
        open_shards(tmp_path)
