"""What a results file states: means with intervals, what they were measured on and with; and Markdown tables."""

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import gainRAG
from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import Record, atomic_write, write_json
from gainRAG.common.settings import versions
from gainRAG.evaluation.answers import METRICS, normalize_answer, suspect_answers
from gainRAG.evaluation.significance import bootstrap_interval

logger = logging.getLogger(__name__)

SUSPECTS_LISTED = 20


def summarize(
    predictions: Sequence[Record], *, split: str, model: str, prompts_hash: str, seed: int | None, **about: Any
) -> Record:
    """The content of a results file.

    Args:
        predictions: one record a question: `id`, `answers` and scores from 0 to 1 (those of METRICS, `accuracy`).
        split: the question set and its part, as "HotpotQA dev".
        model: the LLM that answered.
        prompts_hash: hash of every text shown to the LLM.
        seed: the seed of generation.
        about: anything else worth stating; JSON values.

    Returns:
        `questions`, the facts above, `versions`, `git_commit`, `metrics`: {name: {mean, low, high}} with 95 % bootstrap
        intervals, shares from 0 to 1, and `suspect_answers`.

    Raises:
        ValueError: there are no predictions.
    """
    if not predictions:
        raise ValueError("no predictions to summarize")
    return {
        "questions": len(predictions),
        "split": split,
        "model": model,
        "prompts_hash": prompts_hash,
        "seed": seed,
        **about,
        "versions": versions(),
        "git_commit": git_commit(),
        "metrics": {
            name: mean_with_interval([record[name] for record in predictions])
            for name in ("accuracy", *METRICS)
            if name in predictions[0]
        },
        "suspect_answers": _suspects(predictions),
    }


def mean_with_interval(scores: Sequence[float]) -> dict[str, float]:
    """`mean` of the scores, and `low` and `high` of its 95 % bootstrap interval."""
    low, high = bootstrap_interval(scores)
    return {"mean": fmean(scores), "low": low, "high": high}  # unlike sum(), exact: the same in every Python


def format_interval(score: Record | None, digits: int = 1, scale: float = 100) -> str | None:
    """`mean [low, high]` of a `mean_with_interval`, in percent unless `scale` is 1; None stays None."""
    if score is None:
        return None
    mean, low, high = (f"{scale * score[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def format_difference(row: Record, digits: int = 2, scale: float = 100) -> tuple[str, str]:
    """The difference and its interval, of a `paired_difference`: in percent points unless `scale` is 1."""
    difference, low, high = (f"{scale * row[name]:+.{digits}f}" for name in ("difference", "low", "high"))
    return difference, f"{low} to {high}"


def _suspects(predictions: Sequence[Record]) -> Record:
    """Questions with a gold answer that containment matches by accident: their share, and the first of them."""
    found = [(record.get("id"), suspect_answers(record["answers"])) for record in predictions]
    found = [(name, answers) for name, answers in found if answers]
    always_right = sum(any(not normalize_answer(answer) for answer in answers) for _, answers in found)
    if always_right and "accuracy" not in predictions[0]:
        logger.warning(
            "%d of %d questions have a gold answer that normalises to nothing: cover_em counts any answer to them as "
            "right, cover_em_bounded does not",
            always_right,
            len(predictions),
        )
    return {
        "questions": len(found),
        "share": len(found) / len(predictions),
        "empty_after_normalising": always_right,
        "examples": [{"id": name, "answers": answers} for name, answers in found[:SUSPECTS_LISTED]],
    }


def git_commit() -> str | None:
    """The checkout's commit, with "-dirty" where tracked files differ from it; None outside a checkout."""
    checkout = Path(gainRAG.__file__).resolve().parents[1]
    if not (checkout / ".git").exists():  # an installed copy may lie inside another project's checkout
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def results_file(path: str) -> Path:
    """Argument type: where a results file can be written, a name that ends in .json.

    Raises:
        UserError: it ends otherwise.
    """
    if Path(path).suffix != ".json":
        raise UserError(f"--output_path {path}: wanted a name that ends in .json")
    return Path(path)


def write_results(path: Path, content: Record, text: str) -> None:
    """Writes a results file and, beside it, what it shows as Markdown, which is printed too."""
    write_json(path, content)
    with atomic_write(path.with_suffix(".md")) as file:
        file.write(text)
    print(text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table: floats with two decimals, None as an empty cell, columns of equal width."""
    cells = [[_cell(value) for value in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells)
    return "".join(f"| {' | '.join(row)} |\n" for row in padded)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
