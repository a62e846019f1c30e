"""A run's folder: what the stage scripts left in it, read back for tables and plots.

answers/NAME/results.json      facts and means of every method (run_baselines)
answers/NAME/METHOD.jsonl      its predictions
selected/METHOD/NAME.jsonl     what a selector picked
scored/WHICH/NAME.jsonl        every candidate's score by the start, the trained selector and others
retrieved/NAME.jsonl           what the retriever found, best first
gains/NAME.jsonl               every candidate's gain, where it was computed
selector/trainer_state.json    loss and learning rate of the training
table_*.json, figure_gap.json  the paper's tables and figure 1, where they were made
"""

import math
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from gainRAG.common.cli import UserError, input_file
from gainRAG.common.jsonl import Record, parse_json, read_records
from gainRAG.common.schemas import as_prediction, as_retrieved, as_scored, is_number, with_unique_ids
from gainRAG.common.settings import identity, read_settings
from gainRAG.evaluation.answers import main_metric
from gainRAG.rag_workflow.picks import METHODS, SELECTED, Picks


def read_results(folder: Path) -> dict[str, Record]:
    """The content of a question set's results.json, by method; nothing where it was not run.

    Raises:
        UserError: the file is not what run_baselines writes.
    """
    path = folder / "results.json"
    results = read_object(path, "an object of methods, as run_baselines writes it") or {}
    for method, result in results.items():
        if not _is_result(result):
            raise UserError(f"{path}: '{method}' lacks questions, metrics or K_docs, which run_baselines writes")
    return results


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict):
        return False
    metrics, picks = result.get("metrics"), result.get("picks", {})
    if not isinstance(metrics, dict) or not isinstance(picks, dict):
        return False
    scores = [*metrics.values(), *(score for score in picks.values() if score is not None)]
    return all(isinstance(result.get(name), int) for name in ("questions", "K_docs")) and all(map(_is_score, scores))


def _is_score(score: Any) -> bool:
    """A mean with its interval, of a size that can be drawn."""
    return isinstance(score, dict) and all(is_number(score.get(name)) for name in ("mean", "low", "high"))


def read_predictions(folder: Path, method: str, result: Record) -> list[Record]:
    """A method's predictions.

    Args:
        folder: that of the question set's results.json.
        result: what results.json says of the method.

    Raises:
        UserError: the file is missing or bad, or not what results.json speaks of.
    """
    path = folder / f"{method}.jsonl"
    predictions = list(read_records(path, as_prediction))
    remedy = "run run_baselines again, it resumes where it stopped"
    if len(predictions) != result["questions"]:
        raise UserError(
            f"{path}: {len(predictions)} predictions, but results.json speaks of {result['questions']}; {remedy}"
        )
    for metric, score in result["metrics"].items():
        scores = [record[metric] for record in predictions if is_number(record.get(metric))]
        if len(scores) == len(predictions) and not math.isclose(fmean(scores), score["mean"], abs_tol=1e-6):
            raise UserError(
                f"{path}: its {metric} is {fmean(scores):.4f}, but results.json says {score['mean']:.4f}, so it is of "
                f"another run; {remedy}"
            )
    return predictions


def find_picks(work: Path, name: str, k: int) -> Picks:
    """The passages of each method for one question set, as far as their files are there."""
    retrieved, gains = work / "retrieved" / f"{name}.jsonl", work / "gains" / f"{name}.jsonl"
    selections = {path.parent.name: path for path in work.glob(f"selected/*/{name}.jsonl")}
    return Picks(k, retrieved if retrieved.exists() else None, selections, gains if gains.exists() else None)


def require_same_selection(folder: Path, method: str, picks: Picks) -> None:
    """Checks that a method's answers were given from the selection that is there now.

    Raises:
        UserError: the selection was made anew since.
    """
    path, settings = picks.files.get(method), read_settings(folder / f"{method}.jsonl")
    if method not in SELECTED or not path or settings is None:
        return
    answered_from = settings.get("inputs", {}).get("selection")
    if answered_from not in (None, identity(path)):
        raise UserError(
            f"{folder / method}.jsonl: answers from another selection than {path}, which was made anew since; "
            "run run_baselines again with --overwrite changed (the scripts: OVERWRITE=1)"
        )


class QuestionSet:
    """One question set of a run: results, predictions, picks, gains and selector scores.

    Args:
        work: the run's folder.
        folder: that of the set's results.json, below it.

    Raises:
        UserError: a file is not what the stages write, or belongs to other questions.
    """

    def __init__(self, work: Path, folder: Path) -> None:
        self.work, self.name = work, folder.name
        results = read_results(folder)
        self.results = {method: results[method] for method in (*METHODS, *results) if method in results}
        self.picks = find_picks(work, self.name, k=1)
        self.predictions: dict[str, dict[str, Record]] = {}
        for method, result in self.results.items():
            require_same_selection(folder, method, self.picks)
            predictions = read_predictions(folder, method, result)
            self.predictions[method] = {str(record.get("id")): record for record in predictions}
        first, *others = self.predictions.items()
        for method, records in others:
            if records.keys() != first[1].keys():
                raise UserError(f"{folder}: {method} and {first[0]} answered different questions; run them on the same")
        self.questions = list(first[1].values())
        self.metric = main_metric(self.questions[0]) if self.questions else "cover_em"

    def scores_of(self, method: str, metric: str) -> list[float] | None:
        """A method's score for each question, from 0 to 1; None where it was not run or has no such score."""
        scores = [record.get(metric) for record in self.predictions.get(method, {}).values()]
        return scores if scores and all(map(is_number, scores)) else None

    def pick_of(self, method: str, question: Record) -> Record | None:
        """The first passage that a method picked for a question; None where it has none, or its file is gone."""
        passages = self.picks.passages_for(method, question) if method in self.picks.files else []
        return passages[0] if passages else None

    def gains_of(self, method: str) -> list[float] | None:
        """The gain of a method's first pick for each question; None where one of them was not computed."""
        picks = [(question, self.pick_of(method, question)) for question in self.questions]
        gains = [pick and self.picks.gain_for(question, pick) for question, pick in picks]
        return gains if gains and None not in gains else None

    @cached_property
    def scored(self) -> dict[str, dict[str, dict[tuple, float]]]:
        """By selector (start, trained) and question id: every candidate's selector score, by `passage_key`; nothing
        where no gains are known, beside which to show them."""
        if not self.picks.candidates:
            return {}
        found = {}
        paths = (self.work / "scored" / which / f"{self.name}.jsonl" for which in ("start", "trained"))
        for path in filter(Path.exists, paths):
            records = read_records(path, with_unique_ids(as_scored))
            found[path.parent.name] = {
                str(record["id"]): {passage_key(one): one["selector_score"] for one in record["ctxs"]}
                for record in records
            }
        return found

    @cached_property
    def ranks(self) -> dict[str, dict[tuple, int]]:
        """By question id: the rank in retrieval, from 1, of every pick and candidate that was retrieved."""
        path, wanted, found = self.picks.files.get("standard_rag"), {}, {}
        for question in self.questions:
            name = str(question.get("id"))
            picked = [self.pick_of(method, question) for method in self.results]
            candidates = self.picks.candidates.get(name, [])
            wanted[name] = {passage_key(one) for one in (*picked, *candidates) if one}
        for record in read_records(path, with_unique_ids(as_retrieved)) if path else ():
            keys = wanted.get(str(record["id"]), ())
            places = enumerate(map(passage_key, record["ctxs"]), start=1)
            found[str(record["id"])] = {key: rank for rank, key in places if key in keys}
        return found


def passage_key(passage: Record) -> tuple:
    """What makes two passages of one question the same: id and text."""
    return str(passage.get("id")), passage["text"]


# --- files of the whole run -------------------------------------------------------------------------------------


def read_object(path: Path, wanted: str = "one JSON object; write it again or remove it") -> Record | None:
    """A file that holds one JSON object; None where it is not there.

    Raises:
        UserError: it holds something else.
    """
    if not path.exists():
        return None
    content = parse_json(input_file(path).read_bytes(), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: wanted {wanted}")
    return content


def read_training(folder: Path) -> list[Record]:
    """`step`, `loss` and `learning_rate` of every logged step of a training.

    Raises:
        UserError: trainer_state.json is not what the training writes.
    """
    path = folder / "trainer_state.json"
    history = (read_object(path) or {"log_history": []}).get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise UserError(f"{path}: no list 'log_history' of objects, which the training writes")
    names = ("step", "loss", "learning_rate")
    steps = [{name: entry[name] for name in names} for entry in history if all(name in entry for name in names)]
    for number, entry in enumerate(steps):
        if not all(map(is_number, entry.values())):
            raise UserError(f"{path}: entry {number} of 'log_history' has something that is no number: {entry}")
    return steps


def read_tables(folder: Path) -> dict[str, Record]:
    """The table scripts' tables, by the file's name.

    Raises:
        UserError: a file is not what gainRAG.analysis.tables writes.
    """
    found = {}
    for path in sorted(folder.glob("table_*.json")):
        content = parse_json(input_file(path).read_bytes(), str(path))
        if not _is_table(content):
            raise UserError(f"{path}: not a table by gainRAG.analysis.tables; write it again or remove it")
        found[path.stem] = content
    return found


def _is_table(content: Any) -> bool:
    texts = {"dataset": str, "method": str, "label": str, "metric": str, "K": int | None, "n": int | None}
    return (
        isinstance(content, dict)
        and isinstance(content.get("title"), str)
        and all(isinstance(content.get(name, []), list) for name in ("cells", "notes"))
        and all(isinstance(note, str) for note in content.get("notes", []))
        and all(
            isinstance(cell, dict)
            and all(name in cell and isinstance(cell[name], kind) for name, kind in texts.items())
            and all(cell.get(name) is None or is_number(cell[name]) for name in ("paper", "difference", "K", "n"))
            and (cell.get("ours") is None or _is_score(cell["ours"]))
            for cell in content.get("cells", [])
        )
    )


def read_gap(folder: Path) -> list[Record]:
    """The rows of figure_gap.json that were measured; none where the file is not there.

    Raises:
        UserError: it is not what gainRAG.analysis.gap writes.
    """
    path = folder / "figure_gap.json"
    rows = (read_object(path) or {"rows": []}).get("rows")
    if not isinstance(rows, list) or not all(map(_is_gap, rows)):
        raise UserError(f"{path}: not a figure by gainRAG.analysis.gap; write it again or remove it")
    return [row for row in rows if row["gap"]]


def _is_gap(row: Any) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("dataset", "method", "label")):
        return False
    gap = row.get("gap")
    if not isinstance(gap, dict):
        return gap is None
    shares = [value for name, value in gap.items() if name not in ("n", "held", "right")]
    return all(share is None or _is_score(share) for share in shares)
