"""The report's parts from the table scripts: scores over K passages, figure 1, the paper's tables beside the run."""

from collections.abc import Sequence
from functools import partial

from gainRAG.analysis import figures
from gainRAG.analysis.figures import Interval, Panel, printable
from gainRAG.analysis.parts import Grid, Missing, Plot, interval
from gainRAG.common.jsonl import Record
from gainRAG.evaluation.results import format_interval

GAP_PANELS = {  # share -> title, axis
    "wrong_of_held": ("Wrong, though the passage holds the answer", "% of questions whose passage holds the answer"),
    "not_held_of_right": ("Right, though the passage does not hold it", "% of questions answered rightly"),
}


def paper_figures(topk: Record, rows: Sequence[Record]) -> list[Plot | Missing]:
    """The scores over K passages, and figure 1, from the top-k table and the rows of figure 1 (both may be empty)."""
    measured = [cell for cell in topk.get("cells", []) if cell.get("ours") and cell["K"]]
    names = dict.fromkeys(cell["dataset"] for cell in measured)
    parts = [topk_part(name, [cell for cell in measured if cell["dataset"] == name]) for name in names]
    if not parts:
        parts.append(Missing("scores over one to five passages in the prompt", "bash scripts/table_topk.sh"))
    parts.append(gap_part(rows) if rows else Missing("the paper's figure 1", "bash scripts/figure_gap.sh"))
    return parts


def topk_part(name: str, cells: Sequence[Record]) -> Plot:
    """Scores and hits over K passages, on one question set."""
    main = "accuracy" if any(cell["metric"] == "accuracy" for cell in cells) else "cover_em"
    titles = {main: main, "hit_at_k": "hit@K"}
    panels = {}
    for metric, title in titles.items():
        rows: dict[str, list[Interval]] = {}
        for cell in cells:
            if cell["metric"] == metric:
                rows.setdefault(cell["method"], []).append(interval(str(cell["K"]), cell["method"], cell["ours"], 1))
        if rows:
            panels[title] = rows
    names = {cell["method"]: printable(cell["label"]) for cell in cells}
    asked = max(cell["n"] or 0 for cell in cells)
    return Plot(
        f"{name}-topk",
        f"More passages in the prompt: {printable(name)}",
        f"Means over {asked} questions with 95 % bootstrap intervals, for K passages in the prompt. hit@K: one of "
        "them holds a gold answer.",
        partial(figures.draw_topk, panels, names),
    )


def gap_part(rows: Sequence[Record]) -> Plot:
    """The paper's figure 1."""
    asked = ", ".join(dict.fromkeys(f"{printable(row['dataset'])} ({row['gap'].get('n')} questions)" for row in rows))
    return Plot(
        "figure-gap",
        "Holding the answer and helping the LLM part ways",
        f"The paper's figure 1 on {asked}: shares with 95 % bootstrap intervals.",
        partial(figures.draw_intervals, gap_panels(rows)),
    )


def gap_panels(rows: Sequence[Record]) -> list[Panel]:
    """The two panels of the paper's figure 1, from the rows of gainRAG.analysis.gap."""
    several = len({row["dataset"] for row in rows}) > 1
    panels = []
    for name, (title, axis) in GAP_PANELS.items():
        bars = [
            interval(f"{row['dataset']}, {row['label']}" if several else row["label"], row["method"], share, 1)
            for row in rows
            if row["gap"] and (share := row["gap"].get(name))
        ]
        panels.append(Panel(title, axis, bars, percent=True))
    return panels


def paper_table(content: Record) -> Grid:
    """A table script's table."""
    rows = [
        (
            *(
                printable(str(cell[name])) if cell[name] is not None else None
                for name in ("dataset", "label", "K", "metric")
            ),
            cell.get("paper"),
            format_interval(cell.get("ours"), digits=2, scale=1),
            cell.get("difference"),
            cell["n"],
        )
        for cell in content.get("cells", [])
    ]
    header = ("questions", "method", "K", "metric", "paper", "ours", "ours less the paper's", "n")
    notes = ("Percent, ours with 95 % bootstrap intervals.", *content.get("notes", []))
    return Grid(printable(content["title"]), header, rows, notes, folded=True)
