"""Draws images/pipeline.svg: from questions to a selector that picks what helps the LLM.

python images/draw_pipeline.py
"""

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1000, 345
STYLE = "font-family:Helvetica,Arial,sans-serif"
INK = "#5b6b7f"
TRAINING, USE, LLM = "#e8f0fb", "#eaf6ec", "#fdf3e1"


def box(x: int, y: int, width: int, title: str, lines: list[str], fill: str) -> str:
    """A rounded box with a bold title and lines below it."""
    height = 34 + 17 * len(lines)
    middle = f'x="{x + width / 2}" text-anchor="middle"'
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{INK}"/>',
        f'<text {middle} y="{y + 21}" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    parts += [
        f'<text {middle} y="{y + 41 + 17 * row}" font-size="12" fill="#333">{escape(line)}</text>'
        for row, line in enumerate(lines)
    ]
    return "".join(parts)


def arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    """A straight arrow."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.6" marker-end="url(#tip)"/>'


def label(x: int, y: int, text: str) -> str:
    """A heading of one row."""
    return f'<text x="{x}" y="{y}" font-size="13" font-weight="bold" fill="{INK}">{escape(text)}</text>'


def drawing() -> str:
    """The whole figure."""
    parts = [
        '<defs><marker id="tip" markerWidth="9" markerHeight="9" refX="8" refY="4" orient="auto">'
        f'<path d="M0,0 L9,4 L0,8 z" fill="{INK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        label(20, 28, "TRAINING: what helps this LLM?"),
        box(20, 45, 175, "retrieval_engine", ["question + corpus", "top 20 passages"], TRAINING),
        box(
            255,
            45,
            225,
            "llm_supervision",
            ["gain of each candidate:", "answer with passage vs without", "(+ the LLM's own passage)"],
            LLM,
        ),
        box(540, 45, 170, "filter", ["keep if the best passage", "is answered correctly"], TRAINING),
        box(
            770,
            45,
            210,
            "selector_finetune",
            ["cross-encoder learns", "KL(softmax(teacher) || student)", "teacher = -log(PPL_CD + 1)"],
            TRAINING,
        ),
        arrow(195, 79, 253, 79),
        arrow(480, 79, 538, 79),
        arrow(710, 79, 768, 79),
        label(20, 208, "USE: pick one passage"),
        box(20, 225, 175, "retrieval_engine", ["new question", "top 100 passages"], USE),
        box(255, 225, 225, "pseudo-passage", ["the LLM writes what it knows", "of the question itself"], LLM),
        box(540, 225, 170, "selector_engine", ["scores all 101", "keeps the best one"], USE),
        box(770, 225, 210, "rag_workflow", ["the LLM answers from it", "containment, EM, F1"], LLM),
        arrow(195, 245, 253, 245),
        arrow(480, 259, 538, 259),
        arrow(710, 259, 768, 259),
        arrow(875, 130, 660, 223),
        f'<path d="M107,293 L107,325 L625,325 L625,295" fill="none" stroke="{INK}" stroke-width="1.6" '
        'marker-end="url(#tip)"/>',
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" style="{STYLE}">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("pipeline.svg").write_text(drawing(), "utf-8")
