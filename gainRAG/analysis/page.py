"""The report as one HTML page that loads nothing: texts escaped, figures inside, one script of ours and no other."""

import base64
import hashlib
from pathlib import Path

from gainRAG.analysis.contents import Report
from gainRAG.analysis.figures import as_image, write_figure
from gainRAG.analysis.parts import Plot

TEMPLATES = Path(__file__).with_name("templates")


def render(report: Report) -> str:
    """The page. Only the script whose hash the page names can run, and nothing can be loaded from elsewhere."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["image"] = lambda plot: as_image(plot.draw())
    environment.filters["shown"] = show
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(
        report=report,
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def show(value: object) -> str:
    """A cell's text: floats with two decimals, None as nothing."""
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_figures(report: Report, folder: Path) -> None:
    """Every figure of the report as PDF and PNG."""
    for section in report.sections:
        for part in section.parts:
            if isinstance(part, Plot):
                write_figure(part.draw(), folder, part.name)
