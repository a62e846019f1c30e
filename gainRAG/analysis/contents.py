"""What the report says, part by part: sentences, tables and figures of what was computed; for the rest, the command."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from gainRAG.analysis import figures, measures
from gainRAG.analysis.figures import Interval, Panel, printable
from gainRAG.analysis.measures import BOUND, SELECTORS, best_first, label
from gainRAG.analysis.paper_parts import paper_figures, paper_table
from gainRAG.analysis.parts import Grid, Missing, Plot, interval
from gainRAG.analysis.questions import question_table
from gainRAG.analysis.runs import QuestionSet, read_gap, read_object, read_results, read_tables, read_training
from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import Record
from gainRAG.common.schemas import is_number
from gainRAG.evaluation.results import format_difference, format_interval
from gainRAG.rag_workflow.picks import WITH_PSEUDO

POINTS = 2000  # drawn in one panel
FACTS = {
    "model": "LLM",
    "backend": "backend",
    "dtype": "number format",
    "K_docs": "passages in the prompt",
    "max_new_tokens": "longest answer, tokens",
    "seed": "seed",
    "prompts_hash": "hash of the prompts",
    "git_commit": "commit",
}
TRAINED_WITH = {
    "num_train_epochs": "epochs",
    "learning_rate": "peak learning rate",
    "questions_an_update": "questions an update",
    "train_group_size": "passages a question",
}


@dataclass(frozen=True)
class Section:
    """A heading with its parts."""

    heading: str
    parts: Sequence[Plot | Grid | Missing]


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    title: str
    result: str | None
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    questions: Record


def collect(work: Path, limit: int, selector_folder: Path | None = None, tables_folder: Path | None = None) -> Report:
    """Reads a run's folder and computes what the page shows.

    Args:
        work: the run's folder.
        limit: questions in the table of questions.
        selector_folder: where the trained selector is; None: `work`/selector.
        tables_folder: where the paper's tables and figure 1 are; None: `work`.

    Raises:
        UserError: nothing was answered under `work`, or a file is not what the stages write.
    """
    trained = selector_folder or work / "selector"
    folders = [path.parent for path in sorted((work / "answers").glob("*/results.json"))]
    sets = [QuestionSet(work, folder) for folder in folders if read_results(folder)]
    if not sets:
        raise UserError(f"{work}: no answers/NAME/results.json in it; scripts/rag_generation.sh writes them")
    sections = [Section(f"Results on {printable(found.name)}", results(found)) for found in sets]
    sections += [
        Section(f"The selector on {printable(found.name)}", [scores_part(found), origins_part(found)]) for found in sets
    ]
    sections.append(Section("Gains and training", [*gains(sets), training_part(trained)]))
    tables, gaps = read_tables(tables_folder or work), read_gap(tables_folder or work)
    sections.append(Section("More passages, and figure 1", paper_figures(tables.get("table_topk", {}), gaps)))
    if tables:
        sections.append(Section("The paper's tables beside this run", list(map(paper_table, tables.values()))))
    return Report(
        title=printable(work.resolve().name),
        result=measures.result_sentence(sets),
        facts=facts(trained, sets),
        sections=sections,
        questions=question_table(sets, limit),
    )


def facts(trained: Path, sets: Sequence[QuestionSet]) -> list[tuple[str, str]]:
    """What the run was: question sets, models and settings; where sets differ, all values."""
    results = [result for found in sets for result in found.results.values()]
    shown = [("questions", "; ".join(f"{printable(found.name)} ({len(found.questions)})" for found in sets))]
    for name, meaning in FACTS.items():
        longest = 12 if name == "git_commit" else 40
        found = (result[name] for result in results if result.get(name) is not None)
        values = dict.fromkeys(printable(str(value), longest) for value in found)
        if values:
            shown.append((meaning, ", ".join(values)))
    flags = (read_object(trained / "training.settings.json") or {}).get("flags")
    if isinstance(flags, dict):
        known = [f"{flags[name]:g} {what}" for name, what in TRAINED_WITH.items() if is_number(flags.get(name))]
        shown.append(("training of the selector", ", ".join(known)))
    return shown


# --- results ----------------------------------------------------------------------------------------------------


def results(found: QuestionSet) -> list[Plot | Grid | Missing]:
    """The methods' scores, and their differences to standard RAG."""
    rows, bars = [], []
    for method in best_first(found):
        metrics, picks = found.results[method]["metrics"], found.results[method].get("picks", {})
        scores = [format_interval(metrics.get(name)) for name in dict.fromkeys((found.metric, "em", "f1"))]
        hit, gain = format_interval(picks.get("hit_at_1")), format_interval(picks.get("pick_gain"), digits=2, scale=1)
        share = format_interval(picks.get("pseudo_share")) if method in (*WITH_PSEUDO, BOUND) else None
        rows.append((printable(label(method)), *scores, hit, gain, share))
        if metrics.get(found.metric):
            bars.append(interval(label(method), method, metrics[found.metric], 100))
    header = ("method", *dict.fromkeys((found.metric, "em", "f1")), "hit@1", "gain of the pick", "pseudo picked")
    n = len(found.questions)
    table = Grid(
        "Methods, best first",
        header,
        rows,
        (
            f"{n} questions. Percent with 95 % bootstrap intervals; gain: -log(PPL_CD + 1), in nats, -0.69 at best. "
            "hit@1: the first passage holds a gold answer. Empty: does not apply, or was not computed.",
        ),
    )
    plot = Plot(
        f"{found.name}-scores",
        f"Answers by {found.metric}",
        f"Mean over {n} questions of {printable(found.name)}, with 95 % bootstrap intervals. Best by gain chooses "
        "with the gold answer in hand, so it is a bound and no method.",
        partial(figures.draw_intervals, [Panel("", f"{found.metric} (%)", bars)]),
    )
    return [table, plot, *difference_parts(found)]


def difference_parts(found: QuestionSet) -> list[Plot | Grid | Missing]:
    """Paired differences to standard RAG: a figure and a table."""
    rows = measures.differences(found)
    if not rows:
        return [Missing("the differences to standard RAG", f"bash scripts/rag_generation.sh {printable(found.name)}")]
    bars = [
        Interval(label(row["method"]), row["method"], row["difference"], row["low"], row["high"])
        for row in rows
        if row["metric"] == found.metric
    ]
    cells = [
        (
            printable(label(row["method"])),
            "gain (nats)" if row["metric"] == "gain" else f"{row['metric']} (points)",
            *format_difference(row, scale=1),
            measures.p_value(row["p"]),
        )
        for row in rows
    ]
    how = f"Paired over the same {len(found.questions)} questions: 95 % bootstrap intervals"
    return [
        Plot(
            f"{found.name}-differences",
            "Difference to standard RAG",
            f"{how}. An interval that holds 0 (the dashed line) leaves open which of the two is better.",
            partial(
                figures.draw_intervals,
                [Panel("", f"difference in {found.metric} (percentage points)", bars, zero=True)],
            ),
        ),
        Grid(
            "Difference to standard RAG",
            ("method", "score", "difference", "95 % interval", "p"),
            cells,
            (f"{how}, two-sided p of a permutation test, not corrected for the number of rows. Positive is better.",),
        ),
    ]


def gains(sets: Sequence[QuestionSet]) -> list[Plot | Missing]:
    """The gain of every method's pick, by question set."""
    panels, missing = [], []
    for found in sets:
        scores = {method: found.results[method].get("picks", {}).get("pick_gain") for method in best_first(found)}
        rows = [interval(label(method), method, score, 1) for method, score in scores.items() if score]
        if rows:
            panels.append(Panel(printable(found.name), "gain of the pick, -log(PPL_CD + 1) (nats)", rows))
        else:
            name = printable(found.name)
            missing.append(Missing(f"gains on {name}", f"GAINS=1 bash scripts/rag_generation.sh {name}"))
    caption = (
        "Mean gain of the first passage that each method picks, by question set, with 95 % bootstrap intervals. The "
        "gain says how well the LLM predicts the gold answer from the passage: -0.69, a perplexity of 1, is best."
    )
    if not panels:
        return missing
    return [Plot("gain-of-picks", "Gain of the pick", caption, partial(figures.draw_intervals, panels)), *missing]


# --- the selector -----------------------------------------------------------------------------------------------


def scores_part(found: QuestionSet) -> Plot | Missing:
    """Selector scores against gains within questions."""
    name = printable(found.name)
    by_selector = {which: list(measures.scores_and_gains(found, which)) for which in SELECTORS}
    by_selector = {which: questions for which, questions in by_selector.items() if questions}
    if not by_selector:
        if found.picks.candidates:
            return Missing("selector scores against gains", f"bash scripts/selector_engine.sh {name}")
        return Missing("selector scores against gains", f"GAINS=1 bash scripts/rag_generation.sh {name}")
    said = []
    for which, questions in by_selector.items():
        value = measures.correlation(questions)
        shown = value and f"{format_interval(value, digits=2, scale=1)} over {value['n']} questions"
        said.append(f"{SELECTORS[which]} {shown or 'not defined'}")
    panels = {SELECTORS[which].capitalize(): _centred(questions) for which, questions in by_selector.items()}
    drawn = max(map(len, panels.values()))
    cut = "" if drawn < POINTS else f" Drawn are the candidates of the first questions, {drawn} points."
    return Plot(
        f"{found.name}-selector",
        "Selector score against gain",
        "A point is a candidate passage. A good selector scores the passage of the higher gain higher. "
        f"Spearman's correlation within a question, mean with 95 % interval: {'; '.join(said)}.{cut}",
        partial(figures.draw_points, panels),
    )


def _centred(questions: Sequence[list[tuple[float, float, bool]]]) -> list[tuple[float, float, bool]]:
    points: list[tuple[float, float, bool]] = []
    for one in questions:
        if len(points) + len(one) > POINTS:
            break
        score, gain = (fmean(point[axis] for point in one) for axis in (0, 1))
        points += [(x - score, y - gain, pseudo) for x, y, pseudo in one]
    return points


def origins_part(found: QuestionSet) -> Plot | Missing:
    """Where each method's picks come from."""
    counted = measures.origins(found)
    if counted is None:
        return Missing("where picks come from", f"bash scripts/selector_engine.sh {printable(found.name)}")
    names = {method: printable(label(method)) for method in counted[1]}
    return Plot(
        f"{found.name}-origins",
        "Where picks come from",
        "Share of questions by the retrieval rank of the first pick. Standard RAG always takes rank 1; pseudo is the "
        "passage that the LLM wrote itself, of which not every method is given one.",
        partial(figures.draw_origins, *counted, names),
    )


def training_part(trained: Path) -> Plot | Missing:
    """Loss and learning rate over the training's steps."""
    steps = read_training(trained)
    if not steps:
        return Missing("loss and learning rate of the training", "bash scripts/selector_finetune.sh")
    return Plot(
        "training",
        "Loss and learning rate",
        f"{len(steps)} logged steps. Loss: KL divergence between the teacher's distribution over a question's "
        "passages, which comes from the gains, and the selector's.",
        partial(figures.draw_training, steps),
    )
