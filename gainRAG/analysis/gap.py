"""How often holding the answer and helping the LLM part ways (the paper's figure 1).

For every question set and method: of the questions whose passages in the prompt hold a gold answer, the share answered
wrongly (the figure's upper panel); of those answered rightly, the share whose passages hold none (its lower panel); and
both as shares of all questions. Right is by the task's own metric: containment (cover_em), or accuracy. Writes
OUT.json, its Markdown and an SVG plot of the two panels beside it.

    python -m gainRAG.analysis.gap --work results/paper --datasets NaturalQA_test \\
        --output_path results/paper/figure_gap.json
"""

import argparse
import logging
from pathlib import Path

from gainRAG.analysis.figures import as_svg, draw_intervals
from gainRAG.analysis.measures import gap_shares
from gainRAG.analysis.paper_parts import gap_panels
from gainRAG.analysis.runs import find_picks, read_predictions, read_results, require_same_selection
from gainRAG.common.cli import UserError, require, run_stage, stage_parser
from gainRAG.common.jsonl import Record, atomic_write
from gainRAG.evaluation.answers import main_metric
from gainRAG.evaluation.recall import find_hits
from gainRAG.evaluation.results import format_interval, markdown_table, results_file, write_results
from gainRAG.rag_workflow.picks import METHODS, Picks

logger = logging.getLogger(__name__)

SHOWN = ("standard_rag", "rerank", "gainrag")
RETRIEVING = tuple(method for method in METHODS if method != "no_retrieval")
SHARES = {
    "wrong_of_held": "wrong, % of questions whose passage holds the answer",
    "not_held_of_right": "passage does not hold it, % of questions answered rightly",
    "wrong_though_held": "wrong although the passage holds it, % of all",
    "right_though_not_held": "right although it does not, % of all",
    "right_of_not_held": "right, % of questions whose passage does not",
}


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--work", required=True, type=Path, help="the run's folder, with retrieved, selected, answers")
    parser.add_argument("--datasets", required=True, nargs="+", metavar="NAME", help="question sets")
    parser.add_argument("--methods", nargs="+", choices=RETRIEVING, default=SHOWN, help="which methods")
    parser.add_argument(
        "--output_path", required=True, type=results_file, help="the shares, .json; .md and .svg are beside it"
    )
    args = parser.parse_args()
    require("matplotlib")
    return args


def main() -> None:
    args = parse_arguments()
    rows = [row for name in args.datasets for row in measure(args.work, name, args.methods)]
    if not any(row["gap"] for row in rows):
        raise UserError(f"{args.work}: no answers of {', '.join(args.datasets)}; scripts/rag_generation.sh writes them")
    with atomic_write(args.output_path.with_suffix(".svg")) as file:
        file.write(as_svg(draw_intervals(gap_panels(rows))))
    write_results(args.output_path, {"shares": SHARES, "unit": "percent", "rows": rows}, markdown(rows))


def measure(work: Path, name: str, methods: list[str]) -> list[Record]:
    """A row for each method on one question set; `gap` is None where the method was not run.

    Raises:
        UserError: answers or passages are not what the stages write, or do not belong together.
    """
    folder, rows = work / "answers" / name, []
    results = read_results(folder)
    for method in methods:
        found, measured = results.get(method), None
        picks = found and find_picks(work, name, found["K_docs"])
        if picks and method in picks.files:
            require_same_selection(folder, method, picks)
            measured = gap(read_predictions(folder, method, found), picks, method)
        else:
            logger.warning("%s, %s: not run, or its passages are gone; left empty", name, method)
        rows.append(
            {
                "dataset": name,
                "method": method,
                "label": METHODS[method],
                "model": found and found.get("model"),
                "K": found and found["K_docs"],
                "gap": measured,
            }
        )
    return rows


def gap(predictions: list[Record], picks: Picks, method: str) -> Record:
    """The SHARES in percent with 95 % intervals (None where a group is empty), and the counts behind them.

    Raises:
        UserError: a question has no picks.
    """
    cases = [
        (any(find_hits(record, picks.passages_for(method, record))), record[main_metric(record)] == 1)
        for record in predictions
    ]
    counts = {"n": len(cases), "held": sum(held for held, _ in cases), "right": sum(right for _, right in cases)}
    shares = gap_shares(cases).items()
    return counts | {name: score and {part: 100 * value for part, value in score.items()} for name, score in shares}


def markdown(rows: list[Record]) -> str:
    """The shares as a Markdown table."""
    lines = []
    for row in rows:
        shares = row["gap"] or {}
        shown = [format_interval(shares.get(name), scale=1) for name in SHARES]
        lines.append((row["dataset"], row["label"], *shown, shares.get("n")))
    return markdown_table(("questions", "method", *SHARES.values(), "n"), lines)


if __name__ == "__main__":
    run_stage(main)
