"""The report's figures, drawn by matplotlib for the page (SVG) and for a paper (PDF, PNG).

The same numbers give the same bytes.
"""

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gainRAG.common.jsonl import Record, atomic_write, output_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.6  # inches: a paper's column, and wide enough to read on a telephone
INK, PALE = "#222222", "#8a8a8a"
COLOURS = {  # Okabe and Ito's, which people who do not see all colours tell apart
    "no_retrieval": PALE,
    "standard_rag": "#0072b2",
    "rerank": "#e69f00",
    "rerank_with_pseudo": "#cc79a7",
    "plain_ppl": "#d55e00",
    "gainrag_no_pseudo": "#56b4e9",
    "gainrag": "#009e73",
    "shipped": "#f0e442",
    "best_by_gain": INK,
}
MARKERS = dict(zip(COLOURS, "XsoPv^Dp*", strict=True))
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALE,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.parse_math": False,  # a $ in a name is a $
    "svg.hashsalt": "gainRAG",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
STEPS_SHOWN = 200
FAR = 1e9  # what lies further out is drawn there


class Interval(NamedTuple):
    """A row of a figure: a mean, with its interval where there is one; of which method, for the colour."""

    label: str
    method: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """Rows below a title, over one axis."""

    title: str
    axis: str
    rows: Sequence[Interval]
    zero: bool = False  # a line at 0: nothing differs
    percent: bool = False  # the axis goes from 0 to 100


def draw_intervals(panels: Sequence[Panel]) -> "Figure":
    """Means as points and 95 % intervals as lines, a row each, panels one below the other."""
    heights = [0.75 + sum(0.16 + 0.15 * _wrap(row.label).count("\n") + 0.16 for row in panel.rows) for panel in panels]
    with _figure(sum(heights)) as figure:
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw_panel(axis, panel)
        figure.get_layout_engine().set(h_pad=0.1)
        return figure


def _draw_panel(axis: "Axes", panel: Panel) -> None:
    for place, row in enumerate(panel.rows):
        mean, low, high = np.clip([row.mean, row.low, row.high], -FAR, FAR)
        colour = COLOURS.get(row.method, INK)
        axis.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot(mean, place, MARKERS.get(row.method, "o"), color=colour, markersize=6, clip_on=False)
    axis.set_yticks(range(len(panel.rows)), [_wrap(row.label) for row in panel.rows])
    axis.set_ylim(len(panel.rows) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    if panel.percent:
        axis.set_xlim(-2, 102)  # room for the marks at the ends
    if panel.zero:
        axis.axvline(0, color=INK, linewidth=1, linestyle="--")
    axis.set_title(panel.title, loc="left")
    axis.set_xlabel(panel.axis, loc="right")


def draw_points(panels: Mapping[str, Sequence[tuple[float, float, bool]]]) -> "Figure":
    """Selector score against gain, both less their question's mean; a panel for each selector, sharing their axes.

    Args:
        panels: title -> (score, gain, is pseudo) of candidates.
    """
    with _figure(2.9) as figure:
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (title, points) in zip(axes, panels.items(), strict=True):
            for pseudo, name, colour, marker in (
                (False, "retrieved", "#0072b2", "o"),
                (True, "pseudo-passage", "#d55e00", "^"),
            ):
                chosen = np.clip(
                    [(x, y) for x, y, is_pseudo in points if is_pseudo == pseudo] or [(np.nan,) * 2], -FAR, FAR
                )
                style = {"color": colour, "markersize": 3, "alpha": 0.45, "markeredgewidth": 0}
                axis.plot(*chosen.T, marker, label=name, rasterized=True, **style)
            axis.axhline(0, color=PALE, linewidth=0.8)
            axis.axvline(0, color=PALE, linewidth=0.8)
            axis.set_title(title, loc="left")
        figure.supxlabel("selector score less the question's mean (logits)", fontsize=9.5)
        axes[0].set_ylabel("gain less the question's\nmean (nats)")
        _legend(figure, axes[0], 2)
        return figure


def draw_origins(groups: Sequence[str], shares: Mapping[str, Sequence[float]], names: Mapping[str, str]) -> "Figure":
    """Grouped bars: the percent of a method's first picks at each rank of retrieval.

    Args:
        groups: ranks, "pseudo".
        shares: method -> percent in each group.
        names: method -> label.
    """
    with _figure(3.2 + 0.18 * len(shares)) as figure:
        axis, width = figure.subplots(), 0.8 / len(shares)
        for number, (method, values) in enumerate(shares.items()):
            places = np.arange(len(groups)) + (number + 0.5) * width - 0.4
            axis.bar(places, values, width * 0.9, color=COLOURS.get(method, INK), label=names[method])
        axis.set_xticks(range(len(groups)), [group.replace(" ", "\n") for group in groups])
        axis.tick_params(axis="x", length=0, labelsize=8.5)
        axis.grid(axis="y")
        axis.set_xlabel("rank in retrieval (pseudo: written by the LLM)")
        axis.set_ylabel("questions (%)")
        _legend(figure, axis, 1)
        return figure


def draw_training(steps: Sequence[Record]) -> "Figure":
    """Loss above, learning rate below, over optimiser steps; at most STEPS_SHOWN points, each the mean of its steps."""
    blocks = np.array_split(np.array([tuple(step.values()) for step in steps], float), min(len(steps), STEPS_SHOWN))
    step, loss, rate = np.clip([block.mean(axis=0) for block in blocks], -FAR, FAR).T
    window = max(1, len(loss) // 10)
    smooth = [loss[max(0, place - window + 1) : place + 1].mean() for place in range(len(loss))]
    with _figure(3.6) as figure:
        above, below = figure.subplots(2, sharex=True, height_ratios=(2, 1))
        above.plot(step, loss, color="#56b4e9", linewidth=0.8, label="as logged")
        above.plot(step, smooth, color="#0072b2", linewidth=2, label=f"mean of the last {window} points")
        below.plot(step, rate, color="#d55e00", linewidth=2)
        below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        above.set_ylabel("loss (nats)")
        below.set_ylabel("learning rate")
        below.set_xlabel("optimiser step")
        for axis in (above, below):
            axis.grid()
            axis.set_ylim(bottom=min(0, axis.get_ylim()[0]) if axis is below else None)
        _legend(figure, above, 2)
        return figure


def draw_topk(panels: Mapping[str, Mapping[str, Sequence[Interval]]], names: Mapping[str, str]) -> "Figure":
    """Scores over K passages in the prompt; a panel for each metric.

    Args:
        panels: metric's label -> method -> rows, whose labels are K; percent.
        names: method -> label.
    """
    with _figure(3.1) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, methods) in zip(axes, panels.items(), strict=True):
            for number, (method, rows) in enumerate(methods.items()):
                mean, low, high = (np.array([getattr(row, part) for row in rows]) for part in ("mean", "low", "high"))
                places = np.array([int(row.label) for row in rows]) + 0.08 * (number - 1)  # side by side, not on top
                error = np.abs([mean - low, high - mean])
                style = {"color": COLOURS.get(method, INK), "marker": MARKERS.get(method, "o"), "markersize": 4}
                axis.errorbar(places, mean, error, label=names[method], linewidth=1.2, elinewidth=0.8, **style)
            axis.set_title(textwrap.fill(title, 20), loc="left")
            axis.set_xticks(sorted({int(row.label) for rows in methods.values() for row in rows}))
            axis.set_ylim(0, 103)
            axis.grid(axis="y")
        figure.supxlabel("K, passages in the prompt", fontsize=9.5)
        axes[0].set_ylabel("questions (%)")
        _legend(figure, axes[0], 2)
        return figure


@contextmanager
def _figure(height: float):
    """A figure of a column's width, drawn in the report's style; without pyplot, so no display is looked for."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def _legend(figure: "Figure", axis: "Axes", columns: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, markerscale=1.5)


def _wrap(text: str) -> str:
    """A row's label in lines of at most 24 characters."""
    return textwrap.fill(printable(text), 24, max_lines=3, placeholder=" ...")


def printable(text: str, longest: int = 200) -> str:
    """A name that can be drawn and shown: no control or direction characters, of limited length."""
    shown = "".join(character if character.isprintable() else "?" for character in text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[:longest]}..."


# --- files ------------------------------------------------------------------------------------------------------


def as_svg(figure: "Figure") -> str:
    """The figure as SVG text; letters are drawn, so that it needs no font."""
    return _saved(figure, "svg", {"Date": None, "Creator": None}).decode()


def as_image(figure: "Figure") -> str:
    """The figure as a data: address that a page shows without loading anything."""
    return "data:image/svg+xml;base64," + base64.b64encode(as_svg(figure).encode()).decode()


def write_figure(figure: "Figure", folder: Path, name: str) -> None:
    """DIR/NAME.pdf and DIR/NAME.png."""
    folder = output_folder(folder)
    metadata = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}
    for kind, fields in metadata.items():
        with atomic_write(folder / f"{name}.{kind}", binary=True) as file:
            file.write(_saved(figure, kind, fields))


def _saved(figure: "Figure", kind: str, metadata: Record) -> bytes:
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(content, format=kind, metadata=metadata)
    return content.getvalue()
