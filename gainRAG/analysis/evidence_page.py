"""The experiment's numbers as Markdown tables and as a figure."""

from collections.abc import Iterable, Mapping

from gainRAG.analysis.figures import Interval, Panel, as_svg, draw_intervals
from gainRAG.analysis.measures import label
from gainRAG.common.jsonl import Record
from gainRAG.evaluation.results import format_difference, format_interval, markdown_table
from gainRAG.rag_workflow.picks import BASES

PAGE, FIGURE = "README.md", "differences.svg"
SHOWN = {"hit_at_1": "hit@1", "pick_gain": "gain of the pick", "cover_em": "cover_em", "f1": "f1"}
PICKED = ("hit_at_1", "pick_gain")  # of SHOWN, what a pick is worth without an answer
VARIANTS = {  # name of a selection -> its selector, which is not cut to an adapter
    "seed_0": "all groups, seed 0",
    "seed_1": "all groups, seed 1",
    "seed_2": "all groups, seed 2",
    "unseen": "seed 0, only questions that the start has not seen",
    "groups_125": "seed 0, 125 groups",
    "groups_250": "seed 0, 250 groups",
    "groups_500": "seed 0, 500 groups",
    "alpha_0": "all groups, seed 0, plain perplexity (alpha 0)",
    "alpha_1": "seed 0, only questions that the start has not seen, alpha 1",
    "float32": "all groups, seed 0, in float32",
    "as_shipped": "the shipped selector, not trained further",
}
HEAD = """# The experiment's results

Written by `python -m gainRAG.analysis.evidence`, which computes every number here from test.jsonl.gz beside it. What
was asked, how the questions were parted and what was chosen on which of them: `docs/results/PROTOCOL.md`.

{n:,} questions that no selector was trained on and no choice was made with: {datasets}. Intervals are 95 % bootstrap
intervals, p two-sided by a permutation test, both over the same questions; p is not corrected for the number of tests.
Percent, except the gain: -log(PPL_CD + 1) in nats, at most 0.
"""


def evidence_page(evidence: Record) -> str:
    """The page, from what `evidence.summarize_lines` returns."""
    counts = ", ".join(f"{name} {number:,}" for name, number in evidence["datasets"].items())
    parts = [HEAD.format(n=evidence["n"], datasets=counts)]
    parts += ["## Methods", methods_table(evidence["methods"])]
    parts += ["## GainRAG less the others", f"![Differences]({FIGURE})", tests_table(evidence["tests"])]
    parts += [won_table(evidence)]
    parts.append("## By question set")
    for name, methods in evidence["by_dataset"].items():
        parts += [f"### {name}, {evidence['datasets'][name]:,} questions", methods_table(methods)]
        parts.append(tests_table(row for row in evidence["tests_by_dataset"][name] if row["metric"] in PICKED))
    if evidence["variants"]:
        parts += ["## Selectors trained otherwise", variants_table(evidence["variants"])]
    if evidence["gap"]:
        parts += ["## Holding the answer, and helping (the paper's figure 1)", gap_table(evidence["gap"])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def methods_table(methods: Mapping[str, Record]) -> str:
    """A row a method."""
    rows = []
    for method, means in methods.items():
        pseudo = _percent(means["pseudo_share"]) if "hit_at_1" in means else None
        rows.append((label(method), *(_interval(metric, means.get(metric)) for metric in SHOWN), pseudo))
    return markdown_table(("method", *SHOWN.values(), "pseudo picked"), rows)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"


def _interval(metric: str, score: Record | None) -> str | None:
    return format_interval(score, digits=3, scale=1) if metric == "pick_gain" else format_interval(score)


def tests_table(tests: Iterable[Record]) -> str:
    """A row a paired test."""
    rows = [(label(row["b"]), label(row["a"]), SHOWN[row["metric"]], *_difference(row)) for row in tests]
    return markdown_table(("method", "less", "score", "difference", "95 % interval", "p"), rows)


def _difference(row: Record) -> tuple[str, str, str]:
    shown = {"digits": 3, "scale": 1} if row["metric"] == "pick_gain" else {"digits": 1}
    return *format_difference(row, **shown), f"{row['p']:.4f}"


def won_table(evidence: Record) -> str:
    """How much of what can be won over standard RAG is won."""
    rows = [(label(method), _percent(share)) for method, share in evidence["share_won"].items()]
    return markdown_table(("method", 'of the gain that "best by gain" wins over standard RAG, percent'), rows)


def variants_table(variants: Mapping[str, Record]) -> str:
    """A row a selector: its picks, and its differences to standard RAG and to the start."""
    rows = []
    for name in sorted(variants, key=lambda name: list(VARIANTS).index(name) if name in VARIANTS else len(VARIANTS)):
        found = variants[name]
        tests = {(row["metric"], row["a"]): " (p ".join(_difference(row)[::2]) + ")" for row in found["tests"]}
        differences = [tests.get((metric, base)) for metric in PICKED for base in BASES]
        means = [_interval(metric, found[metric]) for metric in PICKED]
        rows.append((VARIANTS.get(name, name), *means, *differences, _percent(found["share_won"])))
    less = [f"{SHOWN[metric]} less {base}" for metric in PICKED for base in ("standard RAG", "the start")]
    return markdown_table(("trained with", *(SHOWN[metric] for metric in PICKED), *less, "won, percent"), rows)


def gap_table(gaps: Mapping[str, Record]) -> str:
    """The two shares of figure 1."""
    rows = [(label(method), *map(format_interval, found.values())) for method, found in gaps.items()]
    return markdown_table(("method", "wrong, of picks that hold the answer", "pick lacks it, of right answers"), rows)


def draw_differences(evidence: Record) -> str:
    """The figure of the paired tests, as SVG text."""
    panels = []
    for metric, name in SHOWN.items():
        unit, scale = ("nats", 1) if metric == "pick_gain" else ("points", 100)
        bars = []
        for row in (row for row in evidence["tests"] if row["metric"] == metric):
            numbers = (scale * row[part] for part in ("difference", "low", "high"))
            bars.append(Interval(f"{label(row['b'])} less {label(row['a'])}", row["b"], *numbers))
        panels.append(Panel(name, f"difference ({unit})", bars, zero=True))
    return as_svg(draw_intervals(panels))
