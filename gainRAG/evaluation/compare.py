"""Compares two generation outputs on the same questions: paired bootstrap interval and permutation test.

    python -m gainRAG.evaluation.compare A.jsonl B.jsonl --json comparison.json

Records pair by id. Scores are shown in percent; the difference is B - A, so positive means that B is better.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from gainRAG.common.cli import UserError, keep_apart, non_negative_int, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import Record, read_records, write_json
from gainRAG.common.schemas import require_score, with_unique_ids
from gainRAG.evaluation.results import format_difference, markdown_table
from gainRAG.evaluation.significance import paired_difference

METRICS = ("accuracy", "cover_em", "em", "f1")  # accuracy, which only some tasks have, where both files have it


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("a", metavar="A", help="generation output (.jsonl or .json) of the first system")
    parser.add_argument("b", metavar="B", help="generation output of the second system, on the same questions")
    parser.add_argument("--json", metavar="OUT", help="also write the figures there, as shares from 0 to 1")
    parser.add_argument("--samples", type=positive_int, default=10_000, help="resamples of each test")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the resampling")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.json:
        keep_apart(args.json, args.a, args.b)
    pairs = paired_scores(args.a, args.b)
    rows = compare(pairs, args.samples, args.seed)
    print(f"A: {args.a}\nB: {args.b}\n{len(pairs)} questions, scores in percent\n\n{comparison_table(rows)}", end="")
    if args.json:
        about = {"a": args.a, "b": args.b, "questions": len(pairs), "samples": args.samples, "seed": args.seed}
        write_json(args.json, {**about, "metrics": rows})


def as_compared(record: Record) -> Record:
    """A prediction with the scores that are compared, each from 0 to 1."""
    for metric in METRICS:
        if metric != "accuracy" or metric in record:
            require_score(record, metric)
    return record


def paired_scores(a: str | Path, b: str | Path) -> list[tuple[Record, Record]]:
    """The records of two prediction files, paired by id, in the order of the first.

    Raises:
        UserError: an id is repeated, is in one file only, or means another question in the other file.
    """
    first, second = _by_id(a), _by_id(b)
    for path, missing in ((b, first.keys() - second.keys()), (a, second.keys() - first.keys())):
        if missing:
            shown = ", ".join(sorted(missing)[:3])
            raise UserError(
                f"{path}: lacks {len(missing)} ids that the other file has ({shown}); compare the same questions"
            )
    pairs = [(record, second[name]) for name, record in first.items()]
    for left, right in pairs:
        if left.get("question") != right.get("question"):
            raise UserError(f"{b}: id {left['id']!r} is another question than in {a}; compare the same question set")
    return pairs


def _by_id(path: str | Path) -> dict[str, Record]:
    return {str(record["id"]): record for record in read_records(path, with_unique_ids(as_compared))}


def compare(pairs: Sequence[tuple[Record, Record]], samples: int = 10_000, seed: int = 0) -> list[Record]:
    """A row for each metric: means of both files, difference B - A with its 95 % interval, and p.

    Args:
        pairs: records of the same questions, with scores from 0 to 1.
        samples: resamples of the bootstrap, and of the permutation test.
    """
    rows = []
    for metric in METRICS:
        if all(metric in record for pair in pairs for record in pair):
            a, b = ([record[metric] for record in side] for side in zip(*pairs, strict=True))
            rows.append({"metric": metric, "a": fmean(a), "b": fmean(b), **paired_difference(a, b, samples, seed)})
    return rows


def comparison_table(rows: Sequence[Record]) -> str:
    """The rows of `compare` as a Markdown table, in percent."""
    cells = [
        (row["metric"], 100 * row["a"], 100 * row["b"], *format_difference(row), f"{row['p']:.4f}") for row in rows
    ]
    return markdown_table(("metric", "A", "B", "B - A", "95 % interval", "p"), cells)


if __name__ == "__main__":
    run_stage(main)
