"""What a section of the report consists of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gainRAG.analysis.figures import Interval
from gainRAG.common.jsonl import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """A figure with its caption; `draw` makes it."""

    name: str  # of its files
    title: str
    caption: str
    draw: Callable[[], "Figure"]
    kind: str = "plot"


@dataclass(frozen=True)
class Grid:
    """A table; None is an empty cell."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()
    folded: bool = False
    kind: str = "grid"


@dataclass(frozen=True)
class Missing:
    """What was not computed, and the command that computes it."""

    what: str
    command: str
    kind: str = "missing"


def interval(name: str, method: str, score: Record, scale: float) -> Interval:
    """A `mean_with_interval` as a row of a figure."""
    return Interval(name, method, *(scale * score[part] for part in ("mean", "low", "high")))
