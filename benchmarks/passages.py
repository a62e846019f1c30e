"""Memory of the passage store: makes one of synthetic passages, reads it at random, and says what 21 million need.

    python benchmarks/passages.py --passages 2000000

Resident memory is the process's peak (VmHWM) over that of a Python with the same imports, measured in processes of
their own: one makes the store, one opens it and reads.
"""

import multiprocessing
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from gainRAG.common.cli import positive_int, run_stage, stage_parser
from gainRAG.retrieval_engine.passages import open_store

WIKIPEDIA = 21_015_324


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--passages", type=positive_int, default=2_000_000, help="synthetic, about 100 words each")
    parser.add_argument("--reads", type=positive_int, default=200_000, help="passages read by id, at random")
    parser.add_argument("--folder", help="where the files go; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        corpus = Path(folder) / "corpus.tsv"
        write_corpus(corpus, args.passages)
        base = in_process(dict)["peak_mb"]
        made, read = in_process(make, corpus), in_process(read_at_random, corpus, args.passages, args.reads)
        store = sum(file.stat().st_size for file in corpus.with_name("corpus.tsv.store").iterdir())
    making, reading = made["peak_mb"] - base, read["peak_mb"] - base
    ids = 32 * (WIKIPEDIA - args.passages) / 1e6  # hash, order, and the two sorted, 8 bytes each, while it is made
    rows = [
        ("passages", f"{args.passages:,}"),
        ("corpus, store on disk", f"{made['corpus'] / 1e6:.0f} MB, {store / 1e6:.0f} MB"),
        ("made in", f"{made['seconds']:.1f} s"),
        ("opened in", f"{1000 * read['opened']:.1f} ms"),
        (f"{args.reads:,} reads by id", f"{1e6 * read['seconds'] / args.reads:.1f} us each"),
        ("peak over Python, making", f"{making:.0f} MB; at {WIKIPEDIA:,} about {making + ids:.0f} MB"),
        ("peak over Python, reading", f"{reading:.0f} MB; at {WIKIPEDIA:,}: the same pages and up to "
                                      f"{16 * WIKIPEDIA / 1e6:.0f} MB of ids, which the system may drop"),
    ]  # fmt: skip
    for name, value in rows:
        print(f"{name:<28} {value}")


def write_corpus(path: Path, count: int) -> None:
    words = [f"word{number}" for number in range(5000)]
    texts = [" ".join(random.Random(seed).choices(words, k=100)) for seed in range(997)]
    with path.open("w", encoding="utf-8") as file:
        file.write("id\ttext\ttitle\n")
        for number in range(1, count + 1):
            file.write(f"{number}\t{texts[number % 997]}\tTitle {number}\n")


def make(corpus: Path) -> dict:
    start = time.perf_counter()
    open_store(corpus)
    return {"seconds": time.perf_counter() - start, "corpus": corpus.stat().st_size}


def read_at_random(corpus: Path, count: int, reads: int) -> dict:
    start = time.perf_counter()
    store = open_store(corpus)
    opened = time.perf_counter() - start
    numbers = random.Random(0)
    start = time.perf_counter()
    for _ in range(reads):
        number = numbers.randint(1, count)
        assert store[store.positions([str(number)])[0]]["title"] == f"Title {number}"
    return {"opened": opened, "seconds": time.perf_counter() - start}


def in_process(function, *arguments) -> dict:
    """What the function returns, and the peak resident memory (MB) of the fresh process that ran it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, function, arguments).result()


def _measured(function, arguments) -> dict:
    found = function(*arguments)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {**found, "peak_mb": peak / 1024}


if __name__ == "__main__":
    run_stage(main)
