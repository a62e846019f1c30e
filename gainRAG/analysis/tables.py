"""The paper's tables beside ours: collects results.json files into TABLE.json and TABLE.md.

Each cell has the paper's number, ours with its 95 % bootstrap interval, the difference and the number of questions, in
percent. What was not run, or is not published, is empty.

    python -m gainRAG.analysis.tables main --answers results/paper/answers --datasets HotpotQA_dev NaturalQA_test \\
        --output_path results/paper/table_main.json
"""

import argparse
import logging
from dataclasses import dataclass, field
from pathlib import Path

from gainRAG.analysis.runs import read_predictions, read_results
from gainRAG.common.cli import UserError, run_stage, stage_parser
from gainRAG.common.jsonl import Record
from gainRAG.evaluation.paper import NOT_REPRODUCED, PAPER_QUESTIONS, published
from gainRAG.evaluation.results import format_interval, markdown_table, mean_with_interval, results_file, write_results
from gainRAG.rag_workflow.picks import METHODS, WITH_PSEUDO

logger = logging.getLogger(__name__)

METRIC_LABELS = {
    "accuracy": "accuracy",
    "cover_em": "EM (cover_em)",
    "f1": "F1",
    "mean": "mean of EM and F1",
    "hit_at_k": "answer in the K passages",
    "pseudo_share": "pseudo-passage picked",
}
FACTS = ("split", "model", "backend", "dtype", "K_docs", "max_new_tokens", "prompts_hash", "seed")
SAME = ("questions", "model", "prompts_hash", "seed")  # what cells of one question set must share to be compared


@dataclass(frozen=True)
class Table:
    """A table's title, its rows, the metrics of each, the K of each (empty: as run), notes, and the paper's labels of
    methods where they differ from ours."""

    title: str
    methods: tuple[str, ...]
    metrics: tuple[str, ...] = ("cover_em", "f1", "mean", "pseudo_share")
    ks: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


TABLES = {
    "main": Table(
        "Methods side by side",
        ("no_retrieval", "standard_rag", "rerank", "gainrag_no_pseudo", "gainrag"),
        notes=('"About half" of 2WikiMultiHopQA\'s questions pick the pseudo-passage in the paper; shown as 50.',),
    ),
    "ablation": Table(
        "What each part contributes",
        ("rerank", "gainrag_no_pseudo", "rerank_with_pseudo", "plain_ppl", "gainrag"),
        labels={
            "rerank": "Vanilla reranker",
            "rerank_with_pseudo": "GainRAG without distillation",
            "plain_ppl": "GainRAG with plain perplexity",
        },
        notes=(
            "Without pseudo-passage: the trained selector chooses among the retrieved passages alone.",
            "Without distillation: distillation is the only training here, so this is read as the untrained reranker "
            "choosing among the retrieved passages and the pseudo-passage. The paper's row lies near its vanilla "
            "reranker but far above it on 2WikiMultiHopQA, where the pseudo-passage helps most.",
            "Plain perplexity: a selector trained on the same questions with retrieved_ppl in the place of PPL_CD. The "
            "paper gives differences to GainRAG, -1.00 on HotpotQA and -1.90 on 2WikiMultiHopQA; shown is what they "
            "leave of GainRAG's averages.",
        ),
    ),
    "topk": Table(
        "More passages in the prompt",
        ("standard_rag", "rerank", "gainrag"),
        metrics=("cover_em", "f1", "mean", "hit_at_k"),
        ks=(1, 2, 3, 4, 5),
        notes=("The paper says that K = 1 is best: a larger K raises recall, not accuracy. It gives no numbers here.",),
    ),
}


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("table", choices=TABLES, help="which of the paper's tables")
    parser.add_argument(
        "--answers", required=True, nargs="+", type=Path, metavar="DIR", help="folders of NAME/results.json"
    )
    parser.add_argument(
        "--datasets", required=True, nargs="+", metavar="NAME", help="question sets, in the table's order"
    )
    parser.add_argument(
        "--output_path", required=True, type=results_file, help="the table, .json; its Markdown is beside it"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    content = collect(args.table, args.answers, args.datasets)
    write_results(args.output_path, content, markdown(content))


def collect(kind: str, folders: list[Path], names: list[str]) -> Record:
    """The content of the table's file.

    Args:
        kind: a key of TABLES.
        folders: each holds NAME/results.json and NAME/METHOD.jsonl; their methods are taken together.
        names: the question sets, in the order of the table.

    Raises:
        UserError: none of the sets was run, or a file is not what run_baselines writes.
    """
    table = TABLES[kind]
    answered = {name: Answered(folders, name, bool(table.ks)) for name in names}
    for name in names:
        if not answered[name].results:
            logger.warning("%s was not run: its cells stay empty", name)
    if not any(found.results for found in answered.values()):
        looked = ", ".join(str(folder) for folder in folders)
        raise UserError(f"{looked}: no NAME/results.json of {', '.join(names)}; scripts/rag_generation.sh writes them")
    return {
        "table": kind,
        "title": table.title,
        "unit": "percent",
        "notes": list(table.notes),
        "not_reproduced": list(NOT_REPRODUCED),
        "runs": {name: answered[name].facts() for name in names},
        "cells": [cell for name in names for cell in cells(table, name, answered[name])],
    }


class Answered:
    """What was run on one question set: results by (method, K), K being None in a table without rows of K.

    Raises:
        UserError: two folders answered with different models, prompts or questions.
    """

    def __init__(self, folders: list[Path], name: str, by_k: bool) -> None:
        self.results: dict[tuple[str, int | None], tuple[Record, Path]] = {}
        for folder in folders:
            for method, result in read_results(folder / name).items():
                self.results[method, result["K_docs"] if by_k else None] = result, folder / name
        # Passages in every method's prompt; None in a table by K, and where nothing was run.
        self.k = None if by_k else next((result["K_docs"] for result, _ in self.results.values()), None)
        for fact in SAME if by_k else (*SAME, "K_docs"):
            values = {str(result.get(fact)) for result, _ in self.results.values()}
            if len(values) > 1:
                raise UserError(
                    f"{name}: {fact} differs between methods ({', '.join(sorted(values))}); run them on the same"
                )

    def facts(self) -> Record | None:
        """What the numbers were measured on and with."""
        if not self.results:
            return None
        result, _ = next(iter(self.results.values()))
        names = ("questions", *FACTS, "versions", "git_commit", "suspect_answers")
        return {name: result[name] for name in names if name in result} | {"K_docs": self.k}

    def metrics(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """A table's metrics; for a task with its own, accuracy in the place of those that compare texts."""
        if not any("accuracy" in result["metrics"] for result, _ in self.results.values()):
            return wanted
        return ("accuracy", *(metric for metric in wanted if metric not in ("cover_em", "f1", "mean")))

    def score(self, method: str, k: int | None, metric: str) -> Record | None:
        """`mean`, `low` and `high` in percent; None where it was not run or does not apply."""
        if (method, k) not in self.results:
            return None
        result, folder = self.results[method, k]
        if metric == "mean":
            predictions = read_predictions(folder, method, result)
            found = mean_with_interval([(record["cover_em"] + record["f1"]) / 2 for record in predictions])
        else:
            found = result["metrics"].get(metric) or result.get("picks", {}).get(metric)
        return found and {name: 100 * found[name] for name in ("mean", "low", "high")}


def dataset_of(name: str) -> str:
    """A question file's data set: "HotpotQA" of "HotpotQA_dev"."""
    return name.rpartition("_")[0] or name


def cells(table: Table, name: str, answered: Answered) -> list[Record]:
    """The table's cells for one question set: paper, ours, difference (ours - paper), n."""
    made = []
    for method in table.methods:
        label = table.labels.get(method, METHODS[method])
        for k in table.ks or (None,):
            for metric in answered.metrics(table.metrics):
                if metric == "pseudo_share" and method not in WITH_PSEUDO:
                    continue
                ours = answered.score(method, k, metric)
                paper = published(method, dataset_of(name), metric) if (k or answered.k or 1) == 1 else None
                cell = {"dataset": name, "method": method, "label": label, "K": k, "metric": metric, "paper": paper}
                made.append(
                    {
                        **cell,
                        "ours": ours,
                        "difference": None if ours is None or paper is None else ours["mean"] - paper,
                        "n": ours and answered.results[method, k][0]["questions"],
                        "paper_n": PAPER_QUESTIONS.get(dataset_of(name)),
                    }
                )
    return made


def row(cell: Record) -> tuple:
    """A cell as a line: method, metric, paper, ours, difference, n."""
    label = cell["label"] if cell["K"] is None else f"{cell['label']}, K = {cell['K']}"
    ours, n, of = cell["ours"], cell["n"], cell["paper_n"]
    shown = format_interval(ours, digits=2, scale=1)
    difference = None if cell["difference"] is None else f"{cell['difference']:+.2f}"
    count = f"{n} of {of}" if n and of and n != of else n
    return label, METRIC_LABELS[cell["metric"]], cell["paper"], shown, difference, count


def markdown(content: Record) -> str:
    """The table as Markdown: a part for each question set."""
    header = ("method", "metric", "paper", "ours", "difference", "n")
    parts = [f"# {content['title']}\n\nPercent; ours with 95 % bootstrap intervals; difference = ours - paper.\n"]
    for name, facts in content["runs"].items():
        rows = [row(cell) for cell in content["cells"] if cell["dataset"] == name]
        parts.append(f"## {name}\n\n{about(facts)}\n\n{markdown_table(header, rows)}")
    if content["notes"]:
        parts.append("".join(f"- {note}\n" for note in content["notes"]))
    parts.append("## Not reproduced\n\n" + "".join(f"- {what}\n" for what in content["not_reproduced"]))
    return "\n".join(parts)


def about(facts: Record | None) -> str:
    """One line on what was run."""
    if facts is None:
        return "Not run."
    commit = (facts.get("git_commit") or "unknown")[:12]
    model, prompts = facts.get("model"), facts.get("prompts_hash")
    passages = "" if facts.get("K_docs") is None else f"top {facts['K_docs']}, "
    return f"{facts['questions']} questions, {passages}{model}, prompts {prompts}, commit {commit}."


if __name__ == "__main__":
    run_stage(main)
