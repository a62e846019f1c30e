"""A run as one HTML page: tables, intervals, gains, and example questions with the pick of each method.

Reads what the stage scripts left under --work (answers, and where they are there: selections, retrieval output, gains,
the table scripts' tables). The page loads nothing from elsewhere and runs no script.

    python -m gainRAG.analysis.report --work results/demo --output report.html
"""

import argparse
import logging
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gainRAG.analysis.plots import histogram, interval_bars
from gainRAG.analysis.runs import find_picks, read_predictions, read_results
from gainRAG.common.cli import UserError, input_file, non_negative_int, run_stage, stage_parser
from gainRAG.common.jsonl import Record, atomic_write, parse_json
from gainRAG.evaluation.answers import main_metric
from gainRAG.evaluation.gains import gain_of
from gainRAG.evaluation.results import format_interval

logger = logging.getLogger(__name__)

PAPER_COLUMNS = ("questions", "method", "K", "metric", "paper", "ours", "difference", "n")
STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { border-bottom: 1px solid #ddd; padding: 4px 10px; text-align: left; vertical-align: top }
svg { display: block; margin: 1em 0; max-width: 100%; height: auto }
.right { color: #18794e } .wrong { color: #b42318 } .note { color: #666; font-size: 13px }
"""


def parse_arguments() -> argparse.Namespace:
    """The flags, checked."""
    parser = stage_parser(__doc__)
    parser.add_argument("--work", required=True, type=Path, help="the run's folder")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page, .html")
    parser.add_argument("--examples", type=non_negative_int, default=10, help="questions shown of each set")
    args = parser.parse_args()
    if args.output.suffix not in (".html", ".htm"):
        raise UserError(f"--output {args.output}: wanted a name that ends in .html")
    return args


def main() -> None:
    args = parse_arguments()
    text = page(args.work, args.examples)
    with atomic_write(args.output) as file:
        file.write(text)
    logger.info("%s: %d bytes", args.output, len(text.encode()))


def page(work: Path, examples: int) -> str:
    """The whole page.

    Raises:
        UserError: nothing was answered under `work`, or a file is not what the stages write.
    """
    folders = [path.parent for path in sorted((work / "answers").glob("*/results.json"))]
    parts = []
    for folder in folders:
        found = QuestionSet(work, folder) if read_results(folder) else None
        if found:
            parts.append(f"<h2>{escape(found.name)}</h2>\n" + results_part(found) + gains_part(found))
            parts.append(examples_part(found, examples))
    if not parts:
        raise UserError(f"{work}: no answers/NAME/results.json in it; scripts/rag_generation.sh writes them")
    title = f"GainRAG: {work.resolve().name}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{''.join(parts)}{paper_part(work)}</body></html>\n"
    )


class QuestionSet:
    """One question set of a run: results, predictions, picks and gains of every method.

    Raises:
        UserError: a file is not what the stages write, or belongs to other questions.
    """

    def __init__(self, work: Path, folder: Path) -> None:
        self.name = folder.name
        self.results = read_results(folder)
        self.picks = find_picks(work, self.name, k=1)
        self.predictions = {}
        for method, result in self.results.items():
            predictions = read_predictions(folder, method, result["questions"])
            self.predictions[method] = {str(record.get("id")): record for record in predictions}
        first, *others = self.predictions.items()
        for method, records in others:
            if records.keys() != first[1].keys():
                raise UserError(f"{folder}: {method} and {first[0]} answered different questions; run them on the same")

    def questions(self) -> list[Record]:
        """A record of each question, in order."""
        return list(next(iter(self.predictions.values())).values())

    def pick_of(self, method: str, question: Record) -> Record | None:
        """The first passage that a method picked for a question; None where it has none, or its file is gone."""
        passages = self.picks.passages_for(method, question) if method in self.picks.files else []
        return passages[0] if passages else None

    def gain_of_pick(self, method: str, question: Record) -> float | None:
        """The gain of a method's first pick; None where it was not computed."""
        passage = self.pick_of(method, question)
        return passage and self.picks.gain_for(question, passage)


def html_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of escaped text; None is an empty cell."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{_shown(value)}</td>" for value in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>\n"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return escape(f"{value:.2f}" if isinstance(value, float) else str(value))


def results_part(found: QuestionSet) -> str:
    """Table and bars of every method's scores."""
    rows, bars = [], []
    main = main_metric(next(iter(found.results.values()))["metrics"])
    for method, result in found.results.items():
        metrics, picks = result["metrics"], result.get("picks", {})
        scores = [format_interval(metrics.get(name)) for name in (main, "em", "f1")]
        hit, pseudo = format_interval(picks.get("hit_at_1")), format_interval(picks.get("pseudo_share"))
        gain = format_interval(picks.get("pick_gain"), digits=3, scale=1)
        rows.append((method, *scores, hit, gain, pseudo, result["questions"]))
        score = metrics.get(main)
        if score:
            bars.append((method, *(100 * score[name] for name in ("mean", "low", "high"))))
    facts = next(iter(found.results.values()))
    names = ("model", "split", "K_docs", "backend", "dtype", "seed", "prompts_hash", "git_commit")
    about = "; ".join(f"{name} {facts[name]}" for name in names if name in facts)
    header = (
        "method",
        main,
        "em",
        "f1",
        "answer in the first pick",
        "gain of it",
        "pseudo picked",
        "n",
    )
    return (
        f'<p class="note">{escape(about)}</p>\n'
        + "<p>Percent with 95 % intervals; gain is -log(PPL_CD + 1), 0 at best.</p>\n"
        + html_table(header, rows)
        + interval_bars(bars, f"{main}, % of questions")
    )


def gains_part(found: QuestionSet) -> str:
    """Histograms of the gains of all candidates and of each method's picks; nothing where none was computed."""
    everything = [gain_of(passage["PPL_CD"]) for passages in found.picks.candidates.values() for passage in passages]
    if not everything:
        return ""
    low, high = min(everything), max(everything)
    plots = [histogram(everything, low, high, f"all candidates ({len(everything)})")]
    for method in found.results:
        gains = (found.gain_of_pick(method, question) for question in found.questions())
        values = [gain for gain in gains if gain is not None]
        if values:
            title = f"picks of {method} ({len(values)}), mean {sum(values) / len(values):.3f}"
            plots.append(histogram(values, low, high, title, colour=1))
    return "<h3>Gains</h3>\n" + "".join(plots)


def examples_part(found: QuestionSet, count: int) -> str:
    """Questions with answers and picks of each method; those on which the methods differ come first."""

    def agreement(question: Record) -> bool:
        name = str(question.get("id"))
        return len({is_right(records[name]) for records in found.predictions.values()}) == 1

    chosen = sorted(found.questions(), key=agreement)[:count]
    return "<h3>Examples</h3>\n" + "".join(_example(found, question) for question in chosen) if chosen else ""


def is_right(prediction: Record) -> bool:
    """Whether a prediction is right by its task's own metric."""
    return prediction[main_metric(prediction)] == 1


def _example(found: QuestionSet, question: Record) -> str:
    name = str(question.get("id"))
    gold = "; ".join(map(str, question["answers"]))
    rows = "".join(_answer_row(found, method, found.predictions[method][name]) for method in found.results)
    return (
        f"<h4>{escape(question['question'])}</h4>\n<p>Gold: {escape(gold)}</p>\n"
        f"<table><tr><th>method</th><th>answer</th><th>gain</th><th>passage</th></tr>\n{rows}</table>\n"
    )


def _answer_row(found: QuestionSet, method: str, record: Record) -> str:
    verdict = "right" if is_right(record) else "wrong"
    passage = found.pick_of(method, record)
    shown = None
    if passage is not None:
        source = "the LLM's own" if passage.get("is_pseudo") else passage.get("title") or ""
        shown = f"[{source}] {passage['text'][:300]}"
    return (
        f'<tr><td>{escape(method)}</td><td class="{verdict}">{escape(record["prediction"])}</td>'
        f"<td>{_shown(found.gain_of_pick(method, record))}</td><td>{_shown(shown)}</td></tr>\n"
    )


def paper_part(work: Path) -> str:
    """The table scripts' tables, where they were made."""
    parts = []
    for path in sorted(work.glob("table_*.json")):
        content = parse_json(input_file(path).read_bytes(), str(path))
        try:
            rows = [_paper_row(cell) for cell in content["cells"]]
            parts.append(f"<h2>{escape(content['title'])}: the paper and this run</h2>\n")
            parts.append(html_table(PAPER_COLUMNS, rows))
            parts += [f'<p class="note">{escape(note)}</p>\n' for note in content.get("notes", [])]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"{path}: not a table by gainRAG.analysis.tables; write it again or remove it") from None
    return "".join(parts)


def _paper_row(cell: Record) -> tuple:
    ours = format_interval(cell["ours"], digits=2, scale=1)
    names = ("dataset", "label", "K", "metric", "paper")
    return (*(cell[name] for name in names), ours, cell["difference"], cell["n"])


if __name__ == "__main__":
    run_stage(main)
