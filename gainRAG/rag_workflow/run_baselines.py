"""The methods side by side: same questions, same prompts, same LLM, one table.

No retrieval and standard RAG come from the retrieval output; every other method from the selection file that a
selector wrote for the same questions. With gains of these questions (construct_hf) the table also shows the mean
gain of the passage each method picked, and a row that picks by the gain itself: it knows the gold answer, so it is
an upper bound and no method.

    python -m gainRAG.rag_workflow.run_baselines --data_path retrieved.jsonl --task NaturalQA \
        --lm_type Llama-3-8B-Instruct --output_dir results/nq --gains_path gains.jsonl \
        --selections rerank=rerank.jsonl gainrag=gainrag.jsonl
"""

import argparse
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from gainRAG.common.cli import UserError, run_stage, stage_parser
from gainRAG.common.jsonl import Record, atomic_write, read_records, write_json
from gainRAG.common.resume import StageOutput, write_in_chunks
from gainRAG.common.schemas import as_retrieved, as_supervised, with_unique_ids
from gainRAG.evaluation.recall import AnswerMatcher
from gainRAG.evaluation.results import markdown_table, mean_with_interval
from gainRAG.llm_inference.engine import check_engine_arguments, generation_settings
from gainRAG.rag_workflow.rag_generation import (
    CHUNK,
    add_generation_arguments,
    answered,
    as_answerable,
    count_usable,
    load,
    make_writer,
    metrics_of,
)

logger = logging.getLogger(__name__)

METHODS = {
    "no_retrieval": "No retrieval",
    "standard_rag": "Standard RAG",
    "rerank": "Rerank (untrained selector)",
    "rerank_with_pseudo": "Untrained selector with pseudo-passage",
    "plain_ppl": "Selector trained on plain perplexity",
    "gainrag_no_pseudo": "GainRAG without pseudo-passage",
    "gainrag": "GainRAG",
    "best_by_gain": "Best by gain (upper bound, knows the answer)",
}
SELECTED = ("rerank", "rerank_with_pseudo", "plain_ppl", "gainrag_no_pseudo", "gainrag")


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


class Picks:
    """What each method puts into the prompt, question by question."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.k = args.K_docs
        questions = dict(itertools.islice(_by_id(args.data_path, as_answerable), args.limit))
        self.questions = list(questions.values())
        shape = partial(as_supervised, signal="PPL_CD")
        self.gains = dict(_by_id(args.gains_path, shape)) if args.gains_path else {}
        self.selections = {
            name: {key: record["ctxs"] for key, record in _by_id(path, as_retrieved)}
            for name, path in args.selections.items()
        }
        for name, path in [*args.selections.items(), *([("gains", args.gains_path)] if self.gains else [])]:
            known = self.gains if name == "gains" else self.selections[name]
            missing = [key for key in questions if key not in known]
            if missing:
                raise UserError(
                    f"{path}: lacks {len(missing)} questions of --data_path, the first is id {missing[0]!r}"
                )

    def of(self, method: str, record: Record) -> list[Record]:
        """The passages a method picks for a question, best first; none for no_retrieval."""
        if method == "no_retrieval":
            return []
        if method == "standard_rag":
            return record["ctxs"][: self.k]
        if method == "best_by_gain":
            ranked = sorted(self.gains[str(record["id"])]["passages"], key=lambda passage: passage["PPL_CD"])
            return ranked[: self.k]
        return self.selections[method][str(record["id"])][: self.k]

    def gain(self, record: Record, passage: Record) -> float | None:
        """-log(PPL_CD + 1) of a passage, or None where it was not scored."""
        scored = self.gains.get(str(record.get("id")), {"passages": []})["passages"]
        for candidate in scored:
            if candidate.get("id") == passage.get("id") and candidate["text"] == passage["text"]:
                return -math.log(candidate["PPL_CD"] + 1)
        return None


def _by_id(path: str, shape: Callable[[Record], Record]) -> Iterator[tuple[str, Record]]:
    """(id, record) of a file whose records are matched with other files' by it."""
    for record in read_records(path, with_unique_ids(shape)):
        yield str(record["id"]), record


def _hits(record: Record, passages: list[Record]) -> list[bool]:
    matcher = AnswerMatcher(record["answers"])
    return [matcher.matches(passage["text"]) for passage in passages]


def pick_metrics(picks: Picks, method: str) -> Record:
    """What the first pick of every question is worth, each a mean with its interval: `hit_at_1` (it holds a gold
    answer), `hit_at_k` (one of its K picks does), `pick_gain` (its -log(PPL_CD + 1); None unless all picks were
    scored), `pseudo_share`."""
    picked = [(record, passages) for record in picks.questions if (passages := picks.of(method, record))]
    if not picked:
        return {}
    first = [(record, passages[0]) for record, passages in picked]
    hits = [_hits(record, passages) for record, passages in picked]
    gains = [picks.gain(record, passage) for record, passage in first]
    unscored = sum(gain is None for gain in gains)
    if unscored and picks.gains:
        logger.warning("%s: %d picks are not among the scored passages; mean gain is left out", method, unscored)
    return {
        "hit_at_1": mean_with_interval([float(row[0]) for row in hits]),
        "hit_at_k": mean_with_interval([float(any(row)) for row in hits]),
        "pick_gain": None if unscored else mean_with_interval(gains),
        "pseudo_share": mean_with_interval([float(bool(passage.get("is_pseudo"))) for _, passage in first]),
    }


def run_method(args: argparse.Namespace, picks: Picks, method: str, llm: "SharedLLM") -> list[Record]:
    """Predictions of one method, resumed or taken from a former run where they stand."""
    inputs = {"data_path": args.data_path, "selection": args.selections.get(method)}
    if method == "best_by_gain":
        inputs["gains_path"] = args.gains_path
    path = Path(args.output_dir) / f"{method}.jsonl"
    with make_writer(args, path, **inputs) as writer:
        llm.remember(writer)
        if not writer.complete:
            _, builder = llm.load()

            def prompt_of(record: Record) -> str:
                passages = picks.of(method, record)
                return builder.with_passages(record, passages) if passages else builder.without_passage(record)

            work = partial(map, partial(answered, prompt_of=prompt_of, write=llm.write, task=builder.task))
            write_in_chunks(writer, picks.questions, CHUNK, work, METHODS[method])
    return list(read_records(path))


class SharedLLM:
    """The LLM, loaded when first needed; a prompt that several methods share is answered once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.known: dict[str, str] = {}
        self.loaded = None

    def load(self):
        """The engine and its prompts."""
        self.loaded = self.loaded or load(self.args)
        return self.loaded

    def remember(self, writer: StageOutput) -> None:
        """Takes up the answers of a method's finished chunks (those of a torn chunk are computed again, alike)."""
        records = list(writer.records()) if writer.complete or writer.done else []
        finished = len(records) if writer.complete else len(records) // CHUNK * CHUNK
        self.known.update((record["prompt"], record["prediction"]) for record in records[:finished])

    def write(self, prompts: list[str]) -> list[str]:
        """Predictions, in order."""
        engine, _ = self.load()
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        self.known.update(zip(new, engine.generate(new, self.args.max_new_tokens), strict=True))
        return [self.known[prompt] for prompt in prompts]


def table(results: dict[str, Record]) -> str:
    """Rows of methods; means with 95 % intervals, percent except the gain."""
    header = ("method", "cover_em", "em", "f1", "hit@1", "gain of the pick", "pseudo picked")
    rows = []
    for method, result in results.items():
        metrics, picked = result["metrics"], result["picks"]
        main = "accuracy" if "accuracy" in metrics else "cover_em"
        cells = [_percent(metrics[name]) for name in (main, "em", "f1")]
        gain = picked.get("pick_gain")
        shown = f"{gain['mean']:.3f} [{gain['low']:.3f}, {gain['high']:.3f}]" if gain else None
        share = picked.get("pseudo_share")
        rows.append(
            (METHODS[method], *cells, _percent(picked.get("hit_at_1")), shown, share and f"{100 * share['mean']:.1f}")
        )
    return markdown_table(header, rows)


def _percent(value: Record | None) -> str | None:
    return value and f"{100 * value['mean']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def main() -> None:
    args = parse_arguments()
    check_engine_arguments(args)
    total = count_usable(args, args.data_path)
    picks = Picks(args)
    llm = SharedLLM(args)
    prompts_hash = generation_settings(args)["prompts"]
    results = {}
    for method in args.methods:
        predictions = run_method(args, picks, method, llm)
        results[method] = {
            **metrics_of(args, predictions, args.data_path, prompts_hash),
            "picks": pick_metrics(picks, method),
        }
    folder = Path(args.output_dir)
    write_json(folder / "results.json", results)
    title = (
        f"{args.task}, {total} questions, {args.lm_type}, top {args.K_docs}; "
        "percent with 95 % intervals, gain as -log(PPL_CD + 1)"
    )
    text = f"{title}\n\n{table(results)}"
    with atomic_write(folder / "results.md") as file:
        file.write(text)
    print(text)


if __name__ == "__main__":
    run_stage(main)
