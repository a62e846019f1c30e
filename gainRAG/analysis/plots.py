"""Small plots as SVG text: bars with intervals, and histograms. All text in them is escaped."""

from collections.abc import Sequence
from html import escape

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#bab0ac")
LABEL, WIDTH, ROW = 270, 420, 24  # pixels


def interval_bars(rows: Sequence[tuple[str, float, float, float]], title: str) -> str:
    """Horizontal bars from 0 to 100 percent, a line for each interval.

    Args:
        rows: (label, mean, low, high), in percent.
    """
    parts = []
    for number, (label, mean, low, high) in enumerate(rows):
        top, middle = 30 + number * ROW, 30 + number * ROW + ROW / 2
        parts += [
            _text(LABEL - 8, middle + 4, label, "end"),
            _bar(LABEL, top + 4, _x(mean) - LABEL, ROW - 8, COLOURS[number % len(COLOURS)]),
            f'<path d="M{_x(low):.1f} {middle}H{_x(high):.1f}" stroke="#222" stroke-width="2"/>',
            _text(max(_x(high), _x(mean)) + 6, middle + 4, f"{mean:.1f} [{low:.1f}, {high:.1f}]"),
        ]
    return _page(LABEL + WIDTH + 130, 40 + len(rows) * ROW, title, parts)


def histogram(values: Sequence[float], low: float, high: float, title: str, bins: int = 30, colour: int = 0) -> str:
    """Shares of `values` in equal bins from `low` to `high`; what lies outside counts in the outermost bin."""
    counts = [0] * bins
    for value in values:
        place = int((value - low) / (high - low) * bins) if high > low else 0
        counts[min(max(place, 0), bins - 1)] += 1
    tallest, width = max(counts, default=0) or 1, WIDTH / bins
    parts = [
        _bar(20 + number * width, 110 - 80 * count / tallest, width - 1, 80 * count / tallest, COLOURS[colour])
        for number, count in enumerate(counts)
    ]
    parts += [_text(20, 126, f"{low:.2f}"), _text(20 + WIDTH, 126, f"{high:.2f}", "end")]
    return _page(WIDTH + 40, 134, title, parts)


def _x(percent: float) -> float:
    return LABEL + WIDTH * min(max(percent, 0), 100) / 100


def _bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _page(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([head, f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>', *parts, "</svg>\n"])
