"""Turns every passage of a corpus into a vector: float16 shards that retrieval.py searches.

    python -m gainRAG.retrieval_engine.passage_embed --model_name_or_path contriever-msmarco \\
        --passages psgs_w100.tsv.gz --output_dir embeddings/

Killed, it goes on at the next shard when the same command is given again. The settings are kept beside the shards:
retrieval.py encodes the questions in the same way.
"""

import argparse
import logging
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gainRAG.common.cli import UserError, positive_int, run_stage, stage_parser
from gainRAG.common.models import DTYPES, pick_device, pick_dtype, weights_path
from gainRAG.common.parallel import add_worker_arguments, check_worker_arguments, map_chunks
from gainRAG.common.resume import StageOutput, stage_settings
from gainRAG.retrieval_engine.modeling import POOLINGS, encoder_of
from gainRAG.retrieval_engine.normalize import TextOptions
from gainRAG.retrieval_engine.passages import PassageStore, open_store
from gainRAG.retrieval_engine.vectors import MANIFEST, save_shard

logger = logging.getLogger(__name__)


def main() -> None:
    args = parse_args()
    check_worker_arguments(args)
    path = weights_path(args.model_name_or_path)
    dtype = pick_dtype(args.dtype, pick_device(args.device))
    store = open_store(args.passages, args.passages_store)
    settings = stage_settings(
        "passage_embed",
        {"model_name_or_path": path},
        passages=store.digest,
        pooling=args.pooling,
        normalize=args.normalize,
        max_length=args.max_length,
        dtype=str(dtype).removeprefix("torch."),
        lowercase=args.lowercase,
        normalize_text=args.normalize_text,
        no_title=args.no_title,
        passage_prefix=args.passage_prefix,
        shard_size=args.shard_size,
    )
    with StageOutput(Path(args.output_dir) / MANIFEST, settings, args.overwrite) as writer:
        if not writer.complete:
            embed(args, store, writer)


def embed(args: argparse.Namespace, store: PassageStore, writer: StageOutput) -> None:
    """Writes the shards that are not there yet."""
    first = writer.done * args.shard_size
    shards = (
        range(start, min(start + args.shard_size, len(store))) for start in range(first, len(store), args.shard_size)
    )
    logger.info("%d passages", len(store))
    with tqdm(total=len(store), initial=min(first, len(store)), unit="passage", desc="embed") as bar:
        vectors_of = map_chunks(args, partial(EmbeddingWorker, args, store.folder), shards)
        for number, (ids, vectors) in enumerate(vectors_of, writer.done):
            start = number * args.shard_size
            writer.append(save_shard(Path(args.output_dir), number, ids, vectors, store.digest, start))
            bar.update(len(ids))
    writer.finish()


class EmbeddingWorker:
    """Shards of the passages in `store_folder`, from their positions; see `workers.Worker`.

    The texts are read here and not sent here: reading them for many GPUs is more than one driver can do.
    """

    def __init__(self, args: argparse.Namespace, store_folder: Path) -> None:
        self.store = PassageStore(store_folder)
        self.options = TextOptions(args.lowercase, args.normalize_text, args.no_title, args.passage_prefix)
        self.encoder = encoder_of(args)
        logger.info("%s on %s", self.encoder.dtype, self.encoder.device)

    def __call__(self, shards: Iterator[range]) -> Iterable[tuple[list[str], np.ndarray]]:
        return map(self.encode, shards)

    def encode(self, positions: range) -> tuple[list[str], np.ndarray]:
        """The passages' ids, and their vectors in float16."""
        passages = [self.store[position] for position in positions]
        with tqdm(total=len(passages), unit="passage", desc="shard", leave=False) as bar:
            vectors = self.encoder.encode([self.options.passage(passage) for passage in passages], bar.update)
        vectors = vectors.astype("float16")
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            passage = passages[int(np.argmin(finite))]
            raise UserError(f"passage {passage['id']!r}: its vector overflows; try --dtype float32 or --normalize")
        return [passage["id"] for passage in passages], vectors

    def close(self) -> None:
        """Nothing is loaded after it."""


def parse_args() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", default="contriever-msmarco", help="encoder: a known name, a folder or a hub id")
    add("--passages", required=True, help="corpus: psgs_w100.tsv, .tsv.gz, .jsonl or .jsonl.gz")
    add("--passages_store", help="folder for the passage store; default: beside the corpus")
    add("--output_dir", required=True, help="folder for the shards")
    add("--pooling", choices=POOLINGS, default="mean", help="a text's vector: mean of its tokens, or the first token")
    add("--normalize", action="store_true", help="vectors of length 1 (MiniLM, E5, BGE; not Contriever)")
    add("--passage_prefix", default="", help='put before every passage, for example "passage: " for E5')
    add("--lowercase", action="store_true", help="lower-case passages and questions")
    add("--normalize_text", action="store_true", help="typographic characters to ASCII, as Contriever's option does")
    add("--no_title", action="store_true", help="leave the title out; default: title, a space, text")
    add("--max_length", type=positive_int, default=512, help="tokens a passage is cut to")
    add("--batch_size", type=positive_int, help="passages a forward pass; default: 256 on a GPU, 1024 tokens on a CPU")
    add("--shard_size", type=positive_int, default=100_000, help="passages a shard, and lost at most when killed")
    add("--device", help="cpu, cuda or cuda:N; default: the first GPU, or the CPU")
    add("--dtype", choices=["auto", *DTYPES], default="auto", help="auto: bfloat16 where the hardware has it")
    add("--overwrite", action="store_true", help="start afresh instead of going on or refusing")
    add_worker_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    run_stage(main)
