"""A run's folder: what the stage scripts left in it, read back for tables and plots.

answers/NAME/results.json      facts and means of every method (run_baselines)
answers/NAME/METHOD.jsonl      its predictions
selected/METHOD/NAME.jsonl     what a selector picked
retrieved/NAME.jsonl           what the retriever found, best first
gains/NAME.jsonl               every candidate's gain, where it was computed
"""

from pathlib import Path
from typing import Any

from gainRAG.common.cli import UserError, input_file
from gainRAG.common.jsonl import Record, parse_json, read_records
from gainRAG.common.schemas import LARGEST, as_prediction
from gainRAG.rag_workflow.picks import Picks


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
            "run run_baselines again, it resumes where it stopped"
        )
    return predictions


def find_picks(work: Path, name: str, k: int) -> Picks:
    """The passages of each method for one question set, as far as their files are there."""
    retrieved, gains = work / "retrieved" / f"{name}.jsonl", work / "gains" / f"{name}.jsonl"
    selections = {path.parent.name: path for path in work.glob(f"selected/*/{name}.jsonl")}
    return Picks(k, retrieved if retrieved.exists() else None, selections, gains if gains.exists() else None)
