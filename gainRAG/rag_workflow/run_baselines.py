"""The methods side by side: same questions, same prompts, same LLM, one table.

No retrieval and standard RAG come from the retrieval output; every other method from the selection file that a
selector wrote for the same questions. With gains of these questions (construct_hf) the table also shows the mean
gain of the passage each method picked, and a row that picks by the gain itself: it knows the gold answer, so it is
an upper bound and no method.

    python -m gainRAG.rag_workflow.run_baselines --data_path retrieved.jsonl --task NaturalQA \\
        --lm_type Llama-3-8B-Instruct --output_dir results/nq --gains_path gains.jsonl \\
        --selections rerank=rerank.jsonl gainrag=gainrag.jsonl
"""

import argparse
import logging
from collections.abc import Callable
from functools import cached_property, partial
from operator import sub
from pathlib import Path
from statistics import fmean

from gainRAG.common.cli import UserError, input_file, run_stage, say_next, stage_parser
from gainRAG.common.jsonl import Record, read_records
from gainRAG.common.resume import StageOutput, overwrites_of
from gainRAG.common.schemas import as_retrieved, with_unique_ids
from gainRAG.evaluation.answers import main_metric
from gainRAG.evaluation.gains import warn_of_other_gains
from gainRAG.evaluation.recall import find_hits
from gainRAG.evaluation.results import format_interval, markdown_table, mean_with_interval, write_results
from gainRAG.evaluation.significance import LEVEL, paired_permutation_test
from gainRAG.llm_inference.engine import (
    EngineOptions,
    GenerationOptions,
    Writer,
    check_engine,
    engine_options,
    generation_options,
    generation_settings,
)
from gainRAG.llm_inference.lengths import LengthCheck
from gainRAG.rag_workflow.answering import (
    CHUNK,
    Answer,
    add_generation_arguments,
    check_questions,
    open_predictions,
    read_answerable,
    score_record,
    summarize_predictions,
    write_answers,
)
from gainRAG.rag_workflow.picks import BASES, METHODS, SELECTED, Picks, explained

logger = logging.getLogger(__name__)

OURS = ("gainrag_no_pseudo", "gainrag", "shipped")
Scores = list[float | None]  # one a question
SIDE = ("hit_at_k", "pseudo_share")  # not compared
SHOWN = {"hit_at_1": ("hit@1", 100, 1), "pick_gain": ("gain", 1, 3)}  # metric -> name, scale, digits


def parse_arguments() -> argparse.Namespace:
    """The flags, checked as far as no file is read."""
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", required=True, help="retrieval output of the questions")
    parser.add_argument("--output_dir", required=True, help="folder of METHOD.jsonl, results.json and results.md")
    parser.add_argument(
        "--selections",
        nargs="*",
        default=[],
        metavar="METHOD=FILE",
        help=f"selection output for each of {', '.join(SELECTED)} that is to run",
    )
    parser.add_argument("--gains_path", default=None, help="supervision records of the same questions")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=None, help="which methods; None: all whose files are given"
    )
    add_generation_arguments(parser)
    args = parser.parse_args()
    args.selections = _named_files(args.selections)
    if args.methods is None:
        args.methods = [name for name in METHODS if _missing_file(args, name) is None]
    for name in args.methods:
        if missing := _missing_file(args, name):
            raise UserError(f"--methods {name} needs {missing}")
    return args


def _named_files(given: list[str]) -> dict[str, str]:
    files = dict(item.partition("=")[::2] for item in given)
    for name, path in files.items():
        if name not in SELECTED or not path:
            raise UserError(f"--selections {name}={path}: wanted METHOD=FILE with METHOD among {', '.join(SELECTED)}")
    return files


def _missing_file(args: argparse.Namespace, method: str) -> str | None:
    if method in SELECTED and method not in args.selections:
        return f"--selections {method}=FILE"
    if method == "best_by_gain" and not args.gains_path:
        return "--gains_path"
    return None


def main() -> None:
    args = parse_arguments()
    input_file(args.data_path)
    engine, generation = engine_options(**vars(args)), generation_options(**vars(args))
    check_engine(engine)
    lengths = LengthCheck(engine, generation, args.max_new_tokens, args.skip_too_long)
    read = read_answerable(args.data_path, args.limit, lengths, with_unique_ids(as_retrieved))
    questions = check_questions(read, args.K_docs)
    lengths.report(len(questions))
    flags = args.K_docs, args.limit, args.skip_too_long
    asked = {method: path for method, path in args.selections.items() if method in args.methods}
    picks = Picks(args.K_docs, args.data_path, asked, args.gains_path)
    picks.require(questions)
    if args.gains_path:
        warn_of_other_gains(args.gains_path, generation_settings(engine, generation))
    llm = SharedLLM(engine, generation)
    folder, results, scores = Path(args.output_dir), {}, {}
    paths = [folder / f"{method}.jsonl" for method in args.methods]
    for method, path, overwrite in zip(args.methods, paths, overwrites_of(args.overwrite, paths), strict=True):
        inputs = {"data_path": args.data_path, "selection": args.selections.get(method)}
        if method == "best_by_gain":
            inputs["gains_path"] = args.gains_path
        with open_predictions(path, inputs, engine, generation, *flags, overwrite) as output:
            llm.remember(output)
            for chunk in output.remaining(questions, CHUNK, explained(method)):
                output.append(llm.answer(chunk, partial(picks.passages_for, method)))
        predictions = list(read_records(path))
        picked = pick_scores(picks, method, questions)
        results[method] = {
            **summarize_predictions(predictions, args.data_path, engine, generation, args.K_docs, lengths.skipped),
            **pick_means(picked),
        }
        main = main_metric(results[method]["metrics"])
        scores[method] = {main: [record[main] for record in predictions], **picked}
    llm.close()
    title = (
        f"{args.task}, {len(questions)} questions, {args.lm_type}, top {args.K_docs}; "
        "percent with 95 % intervals, gain as -log(PPL_CD + 1)"
    )
    text = "\n".join((title, "", results_table(results), *supported(scores)))
    write_results(folder / "results.json", results, text)
    compare = f"python -m gainRAG.evaluation.compare {paths[0]} {paths[-1]}" if len(paths) > 1 else ""
    say_next("answers and table", folder, compare)


class SharedLLM:
    """The LLM, loaded when first needed; a prompt that several methods share is answered once."""

    def __init__(self, engine: EngineOptions, generation: GenerationOptions) -> None:
        self.engine = engine
        self.generation = generation
        self.known: dict[str, Answer] = {}

    @cached_property
    def writer(self) -> Writer:
        """The engine and its prompts."""
        return Writer(self.engine, self.generation)

    def close(self) -> None:
        """Closes the writer, where it was loaded."""
        if "writer" in self.__dict__:
            self.writer.close()

    def remember(self, output: StageOutput) -> None:
        """Takes up the answers of a method's finished chunks (those of a torn chunk are computed again, alike)."""
        records = list(output.records()) if output.complete or output.done else []
        finished = len(records) if output.complete else len(records) // CHUNK * CHUNK
        for record in records[:finished]:
            self.known[record["prompt"]] = record["prediction"], record.get("trouble", "")

    def answer(self, chunk: list[Record], passages_for: Callable[[Record], list[Record]]) -> list[Record]:
        """The output records of some questions, each answered from its passages (from none where it has none)."""
        builder = self.writer.builder
        prompts = [builder.with_passages(record, passages_for(record)) for record in chunk]
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        self.known.update(zip(new, write_answers(self.writer, new), strict=True))
        cases = zip(chunk, prompts, strict=True)
        return [score_record(record, prompt, self.known[prompt], builder.task) for record, prompt in cases]


def pick_scores(picks: Picks, method: str, questions: list[Record]) -> dict[str, Scores | None]:
    """What the first pick of every question is worth: `hit_at_1` (it holds a gold answer), `hit_at_k` (one of its K
    picks does), `pick_gain` (its -log(PPL_CD + 1), None where the question has no pick; None unless all picks were
    scored), `pseudo_share`. Empty where the method picks nothing."""
    picked = [(record, picks.passages_for(method, record)) for record in questions]
    if not any(passages for _, passages in picked):
        return {}
    hits = [find_hits(record, passages) or [False] for record, passages in picked]
    gains = [picks.gain_for(record, passages[0]) if passages else None for record, passages in picked]
    unpicked = sum(not passages for _, passages in picked)
    unscored = sum(gain is None for gain in gains) - unpicked
    if unscored and picks.candidates:
        logger.warning("%s: %d picks are not among the scored passages; mean gain is left out", method, unscored)
    elif unpicked and picks.candidates:
        logger.warning("%s: %d questions have no pick; the mean gain is that of the others", method, unpicked)
    return {
        "hit_at_1": [float(row[0]) for row in hits],
        "hit_at_k": [float(any(row)) for row in hits],
        "pick_gain": None if unscored else gains,
        "pseudo_share": [float(bool(passages and passages[0].get("is_pseudo"))) for _, passages in picked],
    }


def pick_means(picked: dict[str, Scores | None]) -> Record:
    """`picks`, the means of `pick_scores`; `without_pick`, how many questions a mean gain leaves out, where it does."""
    scored = {name: row and [score for score in row if score is not None] for name, row in picked.items()}
    unpicked = (picked.get("pick_gain") or []).count(None)
    means = {name: row and mean_with_interval(row) for name, row in scored.items()}
    return {"picks": means, **({"without_pick": unpicked} if unpicked else {})}


def results_table(results: dict[str, Record]) -> str:
    """Rows of methods; means with 95 % intervals, percent except the gain."""
    main = main_metric(next(iter(results.values()))["metrics"])
    header = ("method", main, "em", "f1", "hit@1", "gain of the pick", "pseudo picked")
    rows = []
    for method, result in results.items():
        metrics, picked = result["metrics"], result["picks"]
        scores = [metrics[main], metrics["em"], metrics["f1"], picked.get("hit_at_1")]
        gain = format_interval(picked.get("pick_gain"), digits=3, scale=1)
        if unpicked := result.get("without_pick"):
            gain = f"{gain}, {unpicked} without a pick"
        pseudo = picked.get("pseudo_share")
        rows.append((explained(method), *map(format_interval, scores), gain, pseudo and f"{100 * pseudo['mean']:.1f}"))
    return markdown_table(header, rows)


def supported(scores: dict[str, dict[str, Scores | None]]) -> list[str]:
    """What the paired test over these questions supports about the selectors, against standard RAG and their start.

    Args:
        scores: method -> metric -> a score for each question, None where there is none.

    Returns:
        Lines of Markdown; none where there is nothing to compare.
    """
    pairs = [(ours, base) for ours in OURS for base in BASES if ours in scores and base in scores]
    if not pairs:
        return []
    lines = [f"- {explained(a)} against {explained(b)}: {_verdict(scores[b], scores[a])}" for a, b in pairs]
    return [
        f"What a paired permutation test supports on these questions (p < {LEVEL} of each single test):",
        "",
        *lines,
        "",
    ]


def _verdict(base: dict[str, Scores | None], ours: dict[str, Scores | None]) -> str:
    kinds: dict[str, list[str]] = {"ahead in": [], "behind in": [], "no difference shown in": []}
    for metric in ours:
        pairs = list(zip(base.get(metric) or (), ours[metric] or (), strict=False))  # one of them may lack the metric
        pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
        if metric in SIDE or not pairs:
            continue
        before, after = map(list, zip(*pairs, strict=True))
        p, difference = paired_permutation_test(before, after), fmean(map(sub, after, before))
        name, scale, digits = SHOWN.get(metric, (metric, 100, 1))
        kind = "no difference shown in" if p >= LEVEL else "ahead in" if difference > 0 else "behind in"
        kinds[kind].append(f"{name} ({scale * difference:+.{digits}f}, p {p:.4f})")
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names)


if __name__ == "__main__":
    run_stage(main)
