"""Exact search: time and peak memory of the passage store with streamed shards, against the way it is mostly done
(a list of dicts, all vectors in one faiss.IndexFlatIP).

    python benchmarks/retrieval.py --passages 1000000 --dim 384

Both start from the same files on disk, in processes of their own, and must find the same passages. Time is what it
takes to load and search, the store and the shards being there; the system's file cache is warm for both.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from passages import in_process

from gainRAG.common.cli import positive_float, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import write_json, write_records
from gainRAG.retrieval_engine.exact_search import faiss_knns, search_shards
from gainRAG.retrieval_engine.passages import open_store
from gainRAG.retrieval_engine.vectors import open_shards, save_shard

SHARD = 100_000


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--passages", type=positive_int, default=1_000_000, help="synthetic, about 100 words each")
    parser.add_argument("--dim", type=positive_int, default=384, help="dimensions of a vector")
    parser.add_argument("--questions", type=positive_int, default=500, help="queries searched at once")
    parser.add_argument("--n_docs", type=positive_int, default=100, help="passages a question")
    parser.add_argument("--max_memory_mb", type=positive_float, default=700, help="MB for the streamed search")
    parser.add_argument("--repeats", type=positive_int, default=3, help="runs of each way; the quickest counts")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--folder", help="where the files go; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        prepare(folder, args)
        base = in_process(nothing, folder)["peak_mb"]
        runs = [(in_process(usual, folder, args), in_process(ours, folder, args)) for _ in range(args.repeats)]
        same = np.mean(np.load(folder / "usual.npy") == np.load(folder / "ours.npy"))
    print(f"{args.passages:,} passages, {args.dim} dimensions, {args.questions} questions, top {args.n_docs}; "
          f"same passage in {100 * same:.3f} % of places")  # fmt: skip
    print(f"{'':<10}{'load s':>10}{'search s':>10}{'both s':>10}{'peak MB':>10}")
    best = {}
    for title, found in zip(("usual", "ours"), zip(*runs, strict=True), strict=True):
        best[title] = {key: min(run[key] for run in found) for key in ("load_s", "search_s", "both_s", "peak_mb")}
        best[title]["peak_mb"] -= base
        print(f"{title:<10}{'{:>10.2f}{:>10.2f}{:>10.2f}{:>10.0f}'.format(*best[title].values())}")
    ratios = (best["ours"][key] / value for key, value in best["usual"].items())
    print(f"{'ratio':<10}{'{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}'.format(*ratios)}")
    if args.json:
        write_json(args.json, {**best, "same_passages": float(same), "passages": args.passages})


def prepare(folder: Path, args: argparse.Namespace) -> None:
    random = np.random.default_rng(0)
    text = " ".join(f"word{number}" for number in range(100))
    passages = ({"id": str(i), "title": f"Title {i}", "text": f"{i} {text}"} for i in range(args.passages))
    write_records(folder / "corpus.jsonl", passages)
    fingerprint = open_store(folder / "corpus.jsonl").fingerprint
    lines = []
    for number, start in enumerate(range(0, args.passages, SHARD)):
        ids = [str(i) for i in range(start, min(start + SHARD, args.passages))]
        vectors = random.standard_normal((len(ids), args.dim), "float32")
        lines.append(save_shard(folder, number, ids, vectors, fingerprint, start))
    write_records(folder / "shards.jsonl", lines)
    np.save(folder / "queries.npy", random.standard_normal((args.questions, args.dim), "float32"))


def nothing(folder: Path) -> dict:
    import faiss

    np.load(folder / "queries.npy")
    return {"version": faiss.__version__}


def usual(folder: Path, args: argparse.Namespace) -> dict:
    import faiss

    start = time.perf_counter()
    with (folder / "corpus.jsonl").open() as file:
        passages = [json.loads(line) for line in file]
    by_id = {passage["id"]: passage for passage in passages}
    index = faiss.IndexFlatIP(args.dim)
    vectors = np.concatenate([np.load(shard.path) for shard in open_shards(folder)]).astype("float32")
    index.add(vectors)
    loaded = time.perf_counter()
    _, positions = index.search(np.load(folder / "queries.npy"), args.n_docs)
    assert all(len(by_id[str(position)]["text"]) for position in positions.ravel())
    np.save(folder / "usual.npy", positions)
    return seconds_of(start, loaded)


def ours(folder: Path, args: argparse.Namespace) -> dict:
    knns = faiss_knns()  # FAISS loads before the clock starts, as for the other side
    start = time.perf_counter()
    store = open_store(folder / "corpus.jsonl")
    shards = open_shards(folder)
    loaded = time.perf_counter()
    queries = np.load(folder / "queries.npy")
    best = search_shards(queries, shards, store, args.n_docs, args.max_memory_mb * 1e6, knns)
    assert all(len(store[position]["text"]) for position in best.positions.ravel().tolist())
    np.save(folder / "ours.npy", best.positions)
    return seconds_of(start, loaded)


def seconds_of(start: float, loaded: float) -> dict[str, float]:
    end = time.perf_counter()
    return {"load_s": loaded - start, "search_s": end - loaded, "both_s": end - start}


if __name__ == "__main__":
    run_stage(main)
