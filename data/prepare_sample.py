"""Draws a fixed sample of questions, of all or of those that a small corpus can answer.

Reads question or retrieval records, keeps those that pass the conditions given, draws --sample of them by --seed and
writes them in input order: the same files, seed and flags give the same questions. The log reports how many each
condition took. The paper's training questions of HotpotQA, and a sample that a small corpus can answer:

    cd data && python prepare_sample.py --data_path questions/HotpotQA_train.jsonl --sample 20000 \\
        --output_path questions/HotpotQA_20000.jsonl

    cd data && python prepare_sample.py --data_path retrieved.jsonl --output_path questions/sample.jsonl \\
        --answerable_in_top 20 --sample 200
"""

import argparse
import logging
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from gainRAG.common.cli import UserError, keep_apart, non_negative_int, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import Record, read_records, write_records
from gainRAG.common.schemas import as_question, as_retrieved
from gainRAG.evaluation.question_files import read_wordings
from gainRAG.evaluation.recall import mark_hits, match_rule

logger = logging.getLogger("prepare_sample")


@dataclass(frozen=True)
class Conditions:
    """Which questions are kept.

    Attributes:
        only: their wordings; None: any.
        answerable_in_top: one of so many first passages holds a gold answer; None: passages do not count.
        max_answers: they have no more gold answers; None: any number.
        ids: theirs are among these; None: any.
    """

    only: set[str] | None = None
    answerable_in_top: int | None = None
    max_answers: int | None = None
    ids: set[str] | None = None


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", required=True, nargs="+", help="question or retrieval records")
    parser.add_argument("--output_path", required=True, help="the sample, .jsonl or .json")
    parser.add_argument("--sample", type=positive_int, help="how many questions; None: all usable ones")
    parser.add_argument("--seed", type=non_negative_int, default=42, help="seed of the draw")
    parser.add_argument(
        "--only_questions", nargs=2, metavar=("FILE.json", "KEY"), help="only questions whose wording is in this list"
    )
    parser.add_argument(
        "--answerable_in_top",
        type=positive_int,
        help="only questions with a gold answer in that many first passages; later ones are dropped",
    )
    parser.add_argument("--max_answers", type=positive_int, help="only questions with no more gold answers")
    parser.add_argument(
        "--also_in",
        nargs="+",
        help="only questions whose id is in each of these records, as where --skip_too_long left some out",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    keep_apart(args.output_path, *args.data_path, *(args.also_in or ()))
    only = read_wordings(*args.only_questions) if args.only_questions else None
    ids = [{str(record["id"]) for record in read_records(path, as_question)} for path in args.also_in or ()]
    conditions = Conditions(only, args.answerable_in_top, args.max_answers, set.intersection(*ids) if ids else None)
    counts: Counter = Counter()
    records = list(keep_usable(args.data_path, conditions, counts))
    if args.sample is not None and args.sample > len(records):
        logger.warning("--sample %d: only %d questions are usable", args.sample, len(records))
    if args.sample is not None and args.sample < len(records):
        drawn = sorted(random.Random(args.seed).sample(range(len(records)), args.sample))
        records = [records[position] for position in drawn]
    reasons = "; ".join(f"{count} {reason}" for reason, count in counts.items())
    if not records:
        raise UserError(f"no question is left ({reasons})")
    write_records(args.output_path, records)
    logger.info("%s: %d questions (%s)", args.output_path, len(records), reasons)


def keep_usable(paths: list[str], conditions: Conditions, counts: Counter) -> Iterator[Record]:
    """The records that meet every condition, their passages cut to the first `answerable_in_top`."""
    top = conditions.answerable_in_top
    for path in paths:
        for record in read_records(path, as_question if top is None else as_retrieved):
            failed = failed_condition(record, conditions)
            counts[failed or "usable"] += 1
            if failed is None:
                yield record if top is None else {**record, "ctxs": record["ctxs"][:top]}


def failed_condition(record: Record, conditions: Conditions) -> str | None:
    """The first condition that a record does not meet; None where it meets all."""
    top = conditions.answerable_in_top
    if conditions.only is not None and record["question"] not in conditions.only:
        return "not in --only_questions"
    if conditions.ids is not None and str(record["id"]) not in conditions.ids:
        return "not in --also_in"
    if conditions.max_answers is not None and len(record["answers"]) > conditions.max_answers:
        return f"more than {conditions.max_answers} gold answers"
    if top is None:
        return None
    passages = mark_hits(record["ctxs"][:top], record["answers"], match_rule(record))
    return None if any(passage["hasanswer"] for passage in passages) else f"no gold answer in the first {top} passages"


if __name__ == "__main__":
    run_stage(main)
