"""A run's folder: what the stage scripts left in it, read back for tables and plots.

answers/NAME/results.json      facts and means of every method (run_baselines)
answers/NAME/METHOD.jsonl      its predictions
selected/METHOD/NAME.jsonl     what a selector picked
retrieved/NAME.jsonl           what the retriever found, best first
gains/NAME.jsonl               every candidate's gain, where it was computed
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

from gainRAG.common.cli import UserError, input_file
from gainRAG.common.jsonl import FieldError, Record, parse_json, read_records
from gainRAG.common.schemas import LARGEST, as_retrieved, as_supervised


def as_prediction(record: Record) -> Record:
    """A line of generation output: `id`, `question`, `answers`, `prediction`, and `cover_em` and `f1` from 0 to 1."""
    for name, kind in (("question", str), ("prediction", str), ("answers", list)):
        if not isinstance(record.get(name), kind):
            raise FieldError(name, f"missing, or no {kind.__name__}; rag_generation writes it")
    for name in ("cover_em", "f1"):
        score = record.get(name)
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise FieldError(name, f"{score!r} is not a score from 0 to 1; rag_generation writes it")
    return record


def read_results(folder: Path) -> dict[str, Record]:
    """The content of a question set's results.json, by method; nothing where it was not run.

    Raises:
        UserError: the file is not what run_baselines writes.
    """
    path = folder / "results.json"
    if not path.exists():
        return {}
    results = parse_json(input_file(path).read_bytes(), str(path))
    if not isinstance(results, dict):
        raise UserError(f"{path}: wanted an object of methods, as run_baselines writes it")
    for method, result in results.items():
        if not _is_result(result):
            raise UserError(f"{path}: '{method}' lacks questions, metrics or K_docs, which run_baselines writes")
    return results


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict) or not isinstance(result.get("metrics"), dict):
        return False
    counts = isinstance(result.get("questions"), int) and isinstance(result.get("K_docs"), int)
    picks = result.get("picks", {})
    if not counts or not isinstance(picks, dict):
        return False
    return all(map(_is_score, result["metrics"].values())) and all(
        score is None or _is_score(score) for score in picks.values()
    )


def _is_score(score: Any) -> bool:
    """A mean with its interval, of a size that can be drawn."""
    numbers = [score.get(name) for name in ("mean", "low", "high")] if isinstance(score, dict) else [None]
    return all(isinstance(number, int | float) and abs(number) <= LARGEST for number in numbers)


def read_predictions(folder: Path, method: str, questions: int) -> list[Record]:
    """A method's predictions.

    Args:
        folder: that of the question set's results.json.
        questions: how many results.json speaks of.

    Raises:
        UserError: the file is missing or bad, or holds another number of questions.
    """
    path = folder / f"{method}.jsonl"
    predictions = list(read_records(path, as_prediction))
    if len(predictions) != questions:
        raise UserError(
            f"{path}: {len(predictions)} predictions, but results.json speaks of {questions}; "
            "run run_baselines again, it goes on where it stopped"
        )
    return predictions


def read_picks(work: Path, name: str, method: str, k: int) -> dict[str, list[Record]] | None:
    """The k passages that a method puts into the prompt, by question id; None where there are none."""
    if method == "best_by_gain":
        return {
            question: sorted(passages, key=lambda passage: passage["PPL_CD"])[:k]
            for question, passages in read_candidates(work, name).items()
        } or None
    path = work / ("retrieved" if method == "standard_rag" else f"selected/{method}") / f"{name}.jsonl"
    if method == "no_retrieval" or not path.exists():
        return None
    return {str(record.get("id")): record["ctxs"][:k] for record in read_records(path, as_retrieved)}


def read_candidates(work: Path, name: str) -> dict[str, list[Record]]:
    """The passages whose gain was computed, by question id; empty where none was."""
    path = work / "gains" / f"{name}.jsonl"
    if not path.exists():
        return {}
    return {
        str(record.get("id")): record["passages"]
        for record in read_records(path, partial(as_supervised, signal="PPL_CD"))
    }


def gain(candidate: Record) -> float:
    """-log(PPL_CD + 1) of a scored passage: 0 at best."""
    return -math.log(candidate["PPL_CD"] + 1)


def gain_among(passage: Record, candidates: list[Record]) -> float | None:
    """The gain of a passage that stands among the candidates; None where it does not."""
    for candidate in candidates:
        if candidate.get("id") == passage.get("id") and candidate["text"] == passage["text"]:
            return gain(candidate)
    return None
