"""One worker against several: passages embedded a second, the vectors compared.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --num_workers 8 --model_name_or_path contriever-msmarco --passages 400000 \\
        --shard_size 5000

Every worker has one GPU; without GPUs, one core. The rate is that of the time after each worker's first shard: until
then Ray starts and the models load, which the total shows.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from made_up import made_up_passages

from gainRAG.common.cli import UserError, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import write_records
from gainRAG.common.models import pick_device
from gainRAG.common.parallel import WorkerOptions, add_worker_arguments, map_chunks, worker_options
from gainRAG.retrieval_engine.modeling import EncoderOptions
from gainRAG.retrieval_engine.passage_embed import ShardEncoder, shard_ranges
from gainRAG.retrieval_engine.passages import PassageStore, open_store


def main() -> None:
    args = parse_args()
    workers = worker_options(**vars(args))
    encoder = EncoderOptions(args.model_name_or_path, device=args.device, dtype="float32")
    device = pick_device(args.device).type
    if device == "cpu":
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(write_corpus(Path(folder), args.passages))
        runs = {}
        for number in (1, args.num_workers):
            spread = workers if number > 1 else WorkerOptions(device=args.device)
            runs[number] = embed(encoder, spread, store, args.shard_size)
    print(f"{args.passages:,} passages in shards of {args.shard_size:,}, {args.model_name_or_path}, {device}")
    print(f"{'workers':<10}{'first shard s':>15}{'total s':>10}{'passages/s':>12}")
    rates, totals = [], []
    for number, (vectors, times) in runs.items():
        rest = args.passages - number * args.shard_size
        rates.append(rest / (times[-1] - times[number]))
        totals.append(times[-1])
        print(f"{number:<10}{times[1]:>15.1f}{totals[-1]:>10.1f}{rates[-1]:>12.1f}")
        same = np.array_equal(vectors, runs[1][0])
    print(f"{'ratio':<25}{totals[0] / totals[1]:>10.2f}{rates[1] / rates[0]:>12.2f}")
    print(f"same vectors, byte for byte: {'yes' if same else 'no'}")


def parse_args() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", default="all-MiniLM-L6-v2", help="encoder: a known name, a folder or a hub id")
    add("--passages", type=positive_int, default=2000, help="synthetic, of about 100 words")
    add("--shard_size", type=positive_int, default=100, help="passages handed to a worker at a time")
    add("--device", help="cpu or cuda; default: the GPUs, or the CPU")
    add_worker_arguments(parser)
    parser.set_defaults(num_workers=2)
    args = parser.parse_args()
    if args.passages < 4 * args.num_workers * args.shard_size:
        raise UserError(f"--passages {args.passages}: wanted 4 shards a worker, to see more than the start")
    return args


def write_corpus(folder: Path, count: int) -> Path:
    pool = made_up_passages()
    write_records(folder / "corpus.jsonl", ({"id": str(n), **pool[n % len(pool)]} for n in range(count)))
    return folder / "corpus.jsonl"


def embed(
    encoder: EncoderOptions, workers: WorkerOptions, store: PassageStore, shard_size: int
) -> tuple[np.ndarray, list[float]]:
    """The vectors, and the seconds at which nothing, one shard, two shards, ... were there."""
    began, times, parts = time.perf_counter(), [0.0], []
    shards = shard_ranges(len(store), shard_size)
    for _, vectors in map_chunks(partial(ShardEncoder, encoder, store.folder), shards, workers):
        times.append(time.perf_counter() - began)
        parts.append(vectors)
    return np.concatenate(parts), times


if __name__ == "__main__":
    run_stage(main)
