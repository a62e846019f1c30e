"""Draws a fixed sample of questions, of those that a small corpus can answer at all.

Reads question or retrieval records, keeps those that pass the conditions given, draws --sample of them by --seed and
writes them in input order. The log says how many each condition took.

    cd data && python prepare_sample.py --data_path retrieved.jsonl --output_path eval_data/sample.jsonl \
        --answerable_in_top 20 --sample 200
"""

import argparse
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator

from gainRAG.common.cli import UserError, input_file, non_negative_int, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import Record, parse_json, read_records, write_records
from gainRAG.common.schemas import as_question, as_retrieved
from gainRAG.evaluation.recall import AnswerMatcher

logger = logging.getLogger("prepare_sample")


def named_questions(path: str, key: str) -> set[str]:
    """The questions (by wording) listed under a key of a JSON file.

    Raises:
        UserError: the file is not JSON, or has no such list.
    """
    content = parse_json(input_file(path).read_bytes(), path)
    questions = content.get(key) if isinstance(content, dict) else None
    if not isinstance(questions, list) or not all(isinstance(question, str) for question in questions):
        raise UserError(f"{path}: wanted JSON with a list of questions under '{key}'")
    return set(questions)


def condition_failed(record: Record, args: argparse.Namespace, only: set[str] | None) -> str | None:
    """The first condition that a record does not meet; None where it meets all."""
    if only is not None and record["question"] not in only:
        return "not in --only_questions"
    if args.max_answers is not None and len(record["answers"]) > args.max_answers:
        return f"more than {args.max_answers} gold answers"
    top = args.answerable_in_top
    if top is not None and not any(map(holds_answer(record), record["ctxs"][:top])):
        return f"no gold answer in the first {top} passages"
    return None


def holds_answer(record: Record) -> Callable[[Record], bool]:
    """Whether a passage of the record holds a gold answer: as retrieval found, else by looking."""
    matcher = AnswerMatcher(record["answers"])
    return lambda passage: passage["hasanswer"] if "hasanswer" in passage else matcher.matches(passage["text"])


def usable(args: argparse.Namespace, counts: Counter) -> Iterator[Record]:
    """The records that meet every condition, their passages cut to --answerable_in_top."""
    only = named_questions(*args.only_questions) if args.only_questions else None
    top = args.answerable_in_top
    for path in args.data_path:
        for record in read_records(path, as_question if top is None else as_retrieved):
            failed = condition_failed(record, args, only)
            counts[failed or "usable"] += 1
            if failed is None:
                yield record if top is None else {**record, "ctxs": record["ctxs"][:top]}


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", required=True, nargs="+", help="question or retrieval records")
    parser.add_argument("--output_path", required=True, help="the sample, .jsonl or .json")
    parser.add_argument("--sample", type=positive_int, default=None, help="how many questions; None: all usable ones")
    parser.add_argument("--seed", type=non_negative_int, default=42, help="seed of the draw")
    parser.add_argument(
        "--only_questions",
        nargs=2,
        default=None,
        metavar=("FILE.json", "KEY"),
        help="only questions whose wording stands in this list",
    )
    parser.add_argument(
        "--answerable_in_top",
        type=positive_int,
        default=None,
        help="only questions with a gold answer in that many first passages; later ones are dropped",
    )
    parser.add_argument(
        "--max_answers", type=positive_int, default=None, help="only questions with no more gold answers"
    )
    args = parser.parse_args()
    counts: Counter = Counter()
    records = list(usable(args, counts))
    if args.sample is not None and args.sample < len(records):
        drawn = sorted(random.Random(args.seed).sample(range(len(records)), args.sample))
        records = [records[position] for position in drawn]
    if not records:
        raise UserError(f"no question is left ({'; '.join(f'{n} {reason}' for reason, n in counts.items())})")
    write_records(args.output_path, records)
    logger.info(
        "%s: %d questions (%s)",
        args.output_path,
        len(records),
        "; ".join(f"{count} {reason}" for reason, count in counts.items()),
    )


if __name__ == "__main__":
    run_stage(main)
