"""Supervision records to the selector's training groups, FlagEmbedding's format (paper section 3.2).

The teacher's score of a passage is -log(PPL + 1); the lowest-perplexity passage is `pos`, the rest are `neg`.

    cd data && python data2selector.py --data_path kept.jsonl --output_path train.jsonl
"""

import argparse
import itertools
import logging
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from gainRAG.common.cli import (
    UserError,
    keep_apart,
    non_negative_int,
    positive_float,
    positive_int,
    run_stage,
    say_next,
    stage_parser,
)
from gainRAG.common.jsonl import FieldError, Record, read_records, write_records
from gainRAG.common.schemas import as_supervised, passage_text
from gainRAG.evaluation.gains import SIGNALS, gain_of

logger = logging.getLogger("data2selector")


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", required=True, nargs="+", help="supervision records, one file or several")
    parser.add_argument("--output_path", required=True, help="training groups, .jsonl or .json")
    parser.add_argument("--signal", choices=SIGNALS, default="PPL_CD", help="retrieved_ppl is the ablation")
    parser.add_argument("--max_ppl", type=positive_float, help="drop passages with a higher perplexity")
    parser.add_argument("--no_pseudo", action="store_true", help="leave the LLM's own passages out")
    parser.add_argument("--sample", type=positive_int, help="that many questions, drawn by --seed")
    parser.add_argument("--seed", type=non_negative_int, default=42, help="seed of --sample")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    keep_apart(args.output_path, *args.data_path)
    require_distinct(args.data_path)
    paths, counts = filled(args.data_path), Counter()
    records = read_all(paths, args.signal)
    if args.sample is not None:
        total = sum(1 for _ in read_all(paths, args.signal))
        drawn = set(random.Random(args.seed).sample(range(total), min(args.sample, total)))
        records = (record for position, record in enumerate(records) if position in drawn)
    groups = filter(None, (make_group(record, args.signal, args.max_ppl, args.no_pseudo, counts) for record in records))
    first = next(groups, None)
    if first is None:
        raise UserError(f"{', '.join(args.data_path)}: no training group is left; left out: {listed(counts)}")
    written = write_records(args.output_path, itertools.chain([first], groups))
    if counts:
        logger.info("left out: %s", listed(counts))
    logger.info("%s: %d groups", args.output_path, written)
    command = "torchrun --nproc_per_node 1 -m gainRAG.selector_finetune --model_name_or_path bge-reranker-base"
    command += f" --train_data {args.output_path} --output_dir selector"
    say_next("training groups", args.output_path, command)


def require_distinct(paths: list[str]) -> None:
    """Checks that no file is named twice, which would double its groups.

    Raises:
        UserError: one is, by whatever path.
    """
    seen: dict[Path, str] = {}
    for path in paths:
        place = Path(path).resolve()
        if place in seen:
            raise UserError(f"{path}: the same file as {seen[place]}, both in --data_path; name it once")
        seen[place] = path


def filled(paths: list[str]) -> list[str]:
    """The files, without those of which the filter kept nothing unless all are such."""
    empty = [path for path in paths if Path(path).is_file() and holds_nothing(Path(path))]
    for path in empty if len(empty) < len(paths) else ():
        logger.warning("%s is left out: it is empty, the filter kept nothing of it", path)
    return [path for path in paths if path not in empty] or paths


def holds_nothing(path: Path) -> bool:
    """Whether it is empty, or an empty list where it ends in .json."""
    with path.open("rb") as file:
        return file.read(8).strip() in (b"", b"[]")


def read_all(paths: list[str], signal: str) -> Iterator[Record]:
    """The supervision records of all files, each with the perplexity `signal`.

    Raises:
        UserError: a record is unusable, or two files hold the same question under the same id.
    """
    found_in: dict[tuple[str, str], str] = {}

    def in_one_file(path: str, record: Record) -> Record:
        record = as_supervised(record, signal)
        former = found_in.setdefault((str(record.get("id")), record["question"]), path)
        if former != path:
            raise FieldError("id", f"{record.get('id')!r:.80} stands in {former} too, with the same question; keep one")
        return record

    return itertools.chain.from_iterable(read_records(path, partial(in_one_file, path)) for path in paths)


def make_group(record: Record, signal: str, max_ppl: float | None, no_pseudo: bool, counts: Counter) -> Record | None:
    """One question's group; None where fewer than two candidates remain."""
    kept = []
    for passage in record["passages"]:
        if no_pseudo and passage.get("is_pseudo"):
            counts["pseudo-passages"] += 1
        elif max_ppl is not None and passage[signal] > max_ppl:
            counts[f"passages with {signal} above {max_ppl:g}"] += 1
        else:
            kept.append(passage)
    if len(kept) < 2:
        counts["questions with fewer than two candidates"] += 1
        return None
    best, *rest = sorted(kept, key=lambda passage: passage[signal])
    return {
        "id": record.get("id"),
        "query": record["question"],
        "pos": [passage_text(best)],
        "neg": [passage_text(passage) for passage in rest],
        "pos_scores": [gain_of(best[signal])],
        "neg_scores": [gain_of(passage[signal]) for passage in rest],
    }


def listed(counts: Counter) -> str:
    """Why something was left out, each with how often."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


if __name__ == "__main__":
    run_stage(main)
