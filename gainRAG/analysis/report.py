"""A run as one HTML page: its result in a sentence, tables, figures, and the questions, to be filtered and searched.

Reads what the stage scripts left under --work (answers, and where they are there: selections, retrieval output, gains,
selector scores, the training's log, the table scripts' tables); where something was not computed, the page names the
command. The page loads nothing from elsewhere.

    python -m gainRAG.analysis.report --work results/demo --output report.html --figures figures
"""

import argparse
import logging
from pathlib import Path

from gainRAG.analysis.contents import collect
from gainRAG.analysis.page import render, write_figures
from gainRAG.common.cli import UserError, non_negative_int, require, run_stage, stage_parser
from gainRAG.common.jsonl import atomic_write

logger = logging.getLogger(__name__)


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--work", required=True, type=Path, help="the run's folder")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page, .html")
    parser.add_argument("--selector", type=Path, help="the trained selector's folder; None: WORK/selector")
    parser.add_argument("--tables", type=Path, help="the folder of the table scripts' tables; None: --work itself")
    parser.add_argument("--questions", type=non_negative_int, default=1000, help="questions in the page's table")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also write every figure there, PDF and PNG")
    args = parser.parse_args()
    if args.output.suffix not in (".html", ".htm"):
        raise UserError(f"--output {args.output}: wanted a name that ends in .html")
    for package in ("jinja2", "matplotlib"):
        require(package)
    return args


def main() -> None:
    args = parse_arguments()
    report = collect(args.work, args.questions, args.selector, args.tables)
    text = render(report)
    with atomic_write(args.output) as file:
        file.write(text)
    logger.info("%s: %d kB", args.output, len(text.encode()) // 1000)
    if args.figures:
        write_figures(report, args.figures)
        logger.info("%s: the figures as PDF and PNG", args.figures)


if __name__ == "__main__":
    run_stage(main)
