"""OpenTriviaQA's quiz questions as questions with an answer, for the measurement of docs/results/new_domain.

Its files, one a category, have `#Q` before a question, `^` before its right answer, then the choices. Left out are
questions that cannot be answered without the choices ("which of these", "the following", gaps to fill), answers that
say nothing by themselves (true, false, yes, no, "all of these"), and repeated wordings.

    git clone https://github.com/uberspot/OpenTriviaQA
    cd data && python prepare_trivia.py --data_path OpenTriviaQA/categories --output_path OpenTriviaQA.jsonl
"""

import argparse
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from gainRAG.common.cli import UserError, run_stage, say_next, stage_parser
from gainRAG.common.jsonl import write_records

logger = logging.getLogger("prepare_trivia")

NEEDS_CHOICES = re.compile(
    r"\b(of|among) (these|the following|the above)\b|\bthe following\b|\bfrom this list\b|__", re.IGNORECASE
)
SAYS_NOTHING = re.compile(r"(true|false|yes|no)\Z|.*\b(the above|of these|of them)\b", re.IGNORECASE)


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", type=Path, required=True, help="folder of the files, OpenTriviaQA/categories")
    parser.add_argument(
        "--output_path", required=True, help=".jsonl of `question` and `answers`, for prepare_questions.py"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    files = sorted(path for path in args.data_path.glob("*") if path.is_file())
    answers: dict[str, str] = {}
    for path in files:
        for question, answer in read_quiz(path.read_text("utf-8", errors="replace")):
            answers.setdefault(question, answer)
    if not answers:
        raise UserError(f"{args.data_path}: no file there has a line '#Q QUESTION' and below it one '^ ANSWER'")
    records = ({"question": question, "answers": [answer]} for question, answer in answers.items())
    logger.info("%s: %d questions of %d files", args.output_path, write_records(args.output_path, records), len(files))
    command = f"python prepare_questions.py --data_path {args.output_path} --dataset OpenTriviaQA"
    say_next("questions", args.output_path, command)


def read_quiz(text: str) -> Iterator[tuple[str, str]]:
    """(question, answer) of those in a file that can be asked without their choices."""
    lines: list[str] | None = None  # of the question that is being read
    for line in text.splitlines():
        if line.startswith("#Q "):
            lines = [line[3:]]
        elif lines is not None and line.startswith("^ "):
            question, answer = " ".join(" ".join(lines).split()), line[2:].strip()
            lines = None
            readable = question and answer and "\ufffd" not in question + answer  # some files are not all UTF-8
            if readable and not NEEDS_CHOICES.search(question) and not SAYS_NOTHING.match(answer):
                yield question, answer
        elif lines is not None:
            lines.append(line)


if __name__ == "__main__":
    run_stage(main)
