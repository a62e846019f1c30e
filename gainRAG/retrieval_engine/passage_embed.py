"""Turns every passage of a corpus into a vector: float16 shards that retrieval.py searches.

    python -m gainRAG.retrieval_engine.passage_embed --model_name_or_path contriever-msmarco \\
        --passages psgs_w100.tsv.gz --output_dir embeddings/

When killed, it resumes at the next shard once the same command is given again. The settings are kept beside the
shards: retrieval.py encodes the questions in the same way.
"""

import argparse
import logging
from functools import partial
from pathlib import Path

import numpy as np

from gainRAG.common.cli import UserError, add_overwrite_argument, positive_int, run_stage, say_next, stage_parser
from gainRAG.common.jsonl import Record
from gainRAG.common.models import weights_path
from gainRAG.common.parallel import add_worker_arguments, map_chunks, worker_options
from gainRAG.common.progress import ProgressBar
from gainRAG.common.resume import StageOutput, remove_output
from gainRAG.common.settings import stage_settings
from gainRAG.retrieval_engine.modeling import Encoder, EncoderOptions, add_encoder_arguments, encoder_options
from gainRAG.retrieval_engine.passages import PassageStore, add_store_arguments, open_store
from gainRAG.retrieval_engine.vectors import MANIFEST, save_shard

logger = logging.getLogger(__name__)


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add_store_arguments(parser)
    add("--output_dir", required=True, help="folder for the shards")
    add("--passage_prefix", default="", help='put before every passage, for example "passage: " for E5')
    add("--shard_size", type=positive_int, default=100_000, help="passages a shard, and lost at most when killed")
    add_overwrite_argument(parser)
    add_encoder_arguments(parser, "passages")
    add_worker_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    workers = worker_options(**vars(args))
    options = encoder_options(vars(args), prefix=args.passage_prefix, no_title=bool(args.no_title))
    store = open_store(args.passages, args.passages_store, options.no_title)
    folder, size = Path(args.output_dir), args.shard_size
    with StageOutput(folder / MANIFEST, embed_settings(options, store, size), args.overwrite) as output:
        logger.info("%d passages", len(store))
        if not output.complete:
            remove_output(folder / MANIFEST)  # with --overwrite its shards are written over
        shards = (shard for [shard] in output.remaining(shard_ranges(len(store), size), 1, "embed", unit="shard"))
        encoded = map_chunks(partial(ShardEncoder, options, store.folder), shards, workers)
        for number, (ids, vectors) in enumerate(encoded, output.done):
            output.append([save_shard(folder, number, ids, vectors, store.fingerprint, number * size)])
    command = f"python -m gainRAG.retrieval_engine.retrieval --model_name_or_path {args.model_name_or_path} "
    command += f"--passages {args.passages} --passages_embeddings {folder} --data_path QUESTIONS --output_dir FOLDER"
    say_next("vectors", folder, command)


def embed_settings(options: EncoderOptions, store: PassageStore, shard_size: int) -> Record:
    """What decides the vectors; retrieval.py takes from it how questions are encoded."""
    return stage_settings(
        "passage_embed",
        {"model_name_or_path": weights_path(options.model_name_or_path)},
        passages=store.fingerprint,
        **options.shared,
        max_length=options.max_length,
        dtype=options.computed_in,
        no_title=options.no_title,
        passage_prefix=options.prefix,
        shard_size=shard_size,
    )


def shard_ranges(passages: int, size: int) -> list[range]:
    """The positions of each shard's passages."""
    return [range(start, min(start + size, passages)) for start in range(0, passages, size)]


class ShardEncoder:
    """A worker (common.parallel): one shard's positions -> its passages' ids, and their vectors in float16.

    It reads the passages itself: one driver could not read them for many GPUs.
    """

    def __init__(self, options: EncoderOptions, store_folder: Path) -> None:
        self.store = PassageStore(store_folder)
        self.encoder = Encoder(options)
        logger.info("%s on %s", self.encoder.dtype, self.encoder.device)

    def __call__(self, positions: range) -> tuple[list[str], np.ndarray]:
        """The ids of the passages, and their vectors, float16 (passages, dim).

        Raises:
            UserError: a vector is not finite.
        """
        passages = [self.store[position] for position in positions]
        texts = list(map(self.encoder.options.passage_text, passages))
        filled = [row for row, passage in enumerate(passages) if passage["text"].strip()]
        vectors = np.zeros((len(passages), self.encoder.dim), "float16")  # zeros: of an empty one, never retrieved
        with ProgressBar(total=len(filled), unit="passage", desc="shard", leave=False) as bar:
            vectors[filled] = self.encoder.encode([texts[row] for row in filled], bar.update)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            reason = "its vector overflows; try --dtype float32 or --normalize"
            if not len(self.encoder.tokenize([texts[row]])[0]):
                reason = "is empty to the encoder, whose tokenizer makes no token of it; leave it out of the corpus"
            raise UserError(f"passage {passages[row]['id']!r}: {reason}")
        return [passage["id"] for passage in passages], vectors


if __name__ == "__main__":
    run_stage(main)
