"""Parts questions into test, dev and training questions by a hash of their wording, so that no list need be kept.

A question's place, from 0 to 1, is read from the SHA-256 of its normalised wording: the first are to train on, the next
--dev are dev questions, the last --test are test questions. The same wording has the same place in every file and run.

Left out are questions that are nearly the same (their words' Jaccard similarity is --similar or more) as one that the
selector's start was trained on, or as one of --unlike; then dev questions nearly the same as a test question, and
training questions nearly the same as either. What is left out is counted in the log. Records of the questions that the
start was trained on go to excluded.jsonl: nobody can be tested with them, but a selector can be trained on them.

    cd data && python split_questions.py --data_path questions.jsonl \\
        --exclude selector_start/questions.json trained_on --output_dir parts
"""

import argparse
import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from gainRAG.common.cli import UserError, fraction, keep_apart, non_negative_float, run_stage, stage_parser
from gainRAG.common.jsonl import Record, read_records, write_records
from gainRAG.common.schemas import as_question
from gainRAG.evaluation.answers import normalize_answer
from gainRAG.evaluation.question_files import read_wordings

logger = logging.getLogger("split_questions")

PARTS = ("test", "dev", "train")
SALT = "gainRAG evidence: "  # gives this split its own order; changed, every question gets another place


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", required=True, nargs="+", help="question or retrieval records to part")
    parser.add_argument(
        "--output_dir", required=True, help="folder of test.jsonl, dev.jsonl, train.jsonl, excluded.jsonl"
    )
    parser.add_argument("--test", type=non_negative_float, default=0.45, help="share of questions to test on")
    parser.add_argument(
        "--dev", type=non_negative_float, default=0.1, help="share to choose with; the rest is to train on"
    )
    parser.add_argument(
        "--exclude",
        nargs=2,
        metavar=("FILE.json", "KEY"),
        help="a list of wordings that the selector's start was trained on",
    )
    parser.add_argument(
        "--unlike",
        nargs="+",
        default=[],
        metavar="FILE",
        help="question or retrieval records, of an earlier experiment for instance, that no part may know",
    )
    parser.add_argument(
        "--similar", type=fraction, default=0.8, help="Jaccard similarity of two questions that count as the same"
    )
    args = parser.parse_args()
    if args.test + args.dev > 1:
        raise UserError(f"--test {args.test:g} and --dev {args.dev:g} are more than all questions together")
    return args


def main() -> None:
    args = parse_arguments()
    for name in (*PARTS, "excluded"):
        keep_apart(Path(args.output_dir) / f"{name}.jsonl", *args.data_path, *args.unlike)
    records = read_all(args.data_path)
    parts = part_questions(records, args.test, args.dev)
    wordings = read_wordings(*args.exclude) if args.exclude else set()
    known = Similar(args.similar)
    known.add(wordings)
    known.add(record["question"] for record in read_all(args.unlike))
    counts = []
    for name in PARTS:
        kept = [record for record in unique(parts[name]) if not known.has(record["question"])]
        why = "" if counts else " repetitions and near-repetitions left out"
        known.add(record["question"] for record in kept)
        count = write_records(Path(args.output_dir) / f"{name}.jsonl", kept)
        counts.append(f"{name} {count} ({len(parts[name]) - len(kept)}{why})")
    if args.exclude:
        on_list = set(map(normalize_answer, wordings))
        excluded = [record for record in unique(records) if normalize_answer(record["question"]) in on_list]
        counts.append(f"excluded {write_records(Path(args.output_dir) / 'excluded.jsonl', excluded)}")
    logger.info("%s: %s", args.output_dir, ", ".join(counts))


def read_all(paths: list[str]) -> list[Record]:
    """The records of all files."""
    return [record for path in paths for record in read_records(path, as_question)]


def place_of(question: str) -> float:
    """Where a question falls, from 0 to below 1: the same for every question that normalises to the same wording."""
    digest = hashlib.sha256((SALT + normalize_answer(question)).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def part_questions(records: list[Record], test: float, dev: float) -> dict[str, list[Record]]:
    """The records of each of PARTS, in input order.

    Args:
        test, dev: shares of the questions, from 0 to 1.
    """
    parts: dict[str, list[Record]] = {name: [] for name in PARTS}
    for record in records:
        place = place_of(record["question"])
        parts["train" if place < 1 - test - dev else "dev" if place < 1 - test else "test"].append(record)
    return parts


def unique(records: list[Record]) -> list[Record]:
    """The first record of every normalised wording."""
    return list({normalize_answer(record["question"]): record for record in reversed(records)}.values())[::-1]


class Similar:
    """Questions, to ask whether another one is nearly the same as one of them.

    Args:
        least: Jaccard similarity, from above 0 to 1, of the two questions' sets of normalised words.
    """

    def __init__(self, least: float) -> None:
        self.least = least
        self._words: list[set[str]] = []
        self._holders: dict[str, list[int]] = defaultdict(list)  # word -> the questions with it

    def add(self, questions: Iterable[str]) -> None:
        """Takes up some more questions."""
        for question in questions:
            words = set(normalize_answer(question).split())
            for word in words:
                self._holders[word].append(len(self._words))
            self._words.append(words)

    def has(self, question: str) -> bool:
        """Whether one of the questions is nearly the same."""
        words = set(normalize_answer(question).split())
        # Of two that share `least` of their words, one shared word is among so many of the rarest: the rest is skipped.
        enough = len(words) - math.ceil(self.least * len(words)) + 1
        rarest = sorted(words, key=lambda word: (len(self._holders.get(word, ())), word))[:enough]
        candidates = {at for word in rarest for at in self._holders.get(word, ())}
        return any(len(words & self._words[at]) >= self.least * len(words | self._words[at]) for at in candidates)


if __name__ == "__main__":
    run_stage(main)
