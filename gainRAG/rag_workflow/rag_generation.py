"""Answers each question from its selected passages and scores the answers.

Reads a selection (or plain retrieval output), puts the first K_docs passages into the prompt, and writes a record a
question with prompt, prediction and scores; the means with their intervals stand in OUT.metrics.json.

    python -m gainRAG.rag_workflow.rag_generation --data_path selected.jsonl --task HotpotQA \
        --lm_type Llama-3-8B-Instruct --K_docs 1
"""

import argparse
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from gainRAG.common.cli import positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import FieldError, Record, read_records, write_json
from gainRAG.common.parallel import add_worker_arguments, check_worker_arguments
from gainRAG.common.resume import StageOutput, stage_settings, write_in_chunks
from gainRAG.common.schemas import as_retrieved
from gainRAG.evaluation.answers import accuracy, score_prediction
from gainRAG.evaluation.results import markdown_table, summarize
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.llm_inference.engine import (
    Engine,
    add_engine_arguments,
    check_engine_arguments,
    generation_settings,
    load_engine,
    map_texts,
    model_name,
    prompt_builder,
)
from gainRAG.prompts import Task

logger = logging.getLogger(__name__)

CHUNK = 256  # questions


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of whatever answers questions."""
    parser.add_argument("--task", required=True, help="whose prompt and metric to use, e.g. HotpotQA, ARC_Challenge")
    parser.add_argument("--K_docs", type=positive_int, default=1, help="passages in the prompt, best first")
    parser.add_argument("--max_new_tokens", type=positive_int, default=32, help="longest answer, in tokens")
    parser.add_argument("--limit", type=positive_int, default=None, help="only the first questions")
    parser.add_argument("--overwrite", action="store_true", help="start afresh, whatever stands there")
    add_engine_arguments(parser)


def scored(record: Record, prompt: str, prediction: str, task: Task) -> Record:
    """One generation output record; `accuracy` joins the scores for option and true/false tasks."""
    scores = score_prediction(prediction, record["answers"])
    if task.metric == "accuracy":
        labels = (record.get("choices") or {}).get("label")
        scores["accuracy"] = float(accuracy(prediction, record["answers"], labels))
    kept = {name: record.get(name) for name in ("id", "question", "answers")}
    return {**kept, "prompt": prompt, "prediction": prediction, **scores}


def answered(
    chunk: list[Record], prompt_of: Callable[[Record], str], write: Callable[[list[str]], list[str]], task: Task
) -> list[Record]:
    """The output records of some questions.

    Args:
        prompt_of: a question's full prompt.
        write: prompts -> predictions, in order.
    """
    prompts = [prompt_of(record) for record in chunk]
    predictions = write(prompts)
    return [scored(*case, task) for case in zip(chunk, prompts, predictions, strict=True)]


class AnswerWorker:
    """Answers questions from the first K_docs of their passages; see `workers.Worker`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.engine, self.builder = load(args)

    def __call__(self, chunks: Iterator[list[Record]]) -> Iterable[list[Record]]:
        return map(self.answer, chunks)

    def answer(self, chunk: list[Record]) -> list[Record]:
        """The chunk's output records."""
        return answered(chunk, self._prompt, self._write, self.builder.task)

    def _prompt(self, record: Record) -> str:
        return self.builder.with_passages(record, record["ctxs"][: self.args.K_docs])

    def _write(self, prompts: list[str]) -> list[str]:
        return self.engine.generate(prompts, self.args.max_new_tokens)

    def close(self) -> None:
        self.engine.close()
        if self.builder.cut:
            logger.info("%d prompts were too long and were cut inside the passage", self.builder.cut)


def selected(args: argparse.Namespace, path: str | Path) -> Iterator[Record]:
    """The questions of a selection or retrieval file, as far as --limit goes, each with a passage at least."""
    return itertools.islice(read_records(path, as_answerable), args.limit)


def as_answerable(record: Record) -> Record:
    """A question with `ctxs`, at least one."""
    record = as_retrieved(record)
    if not record["ctxs"]:
        raise FieldError("ctxs", "empty; wanted at least one passage")
    return record


def count_usable(args: argparse.Namespace, path: str | Path) -> int:
    """Reads every record once, so that a bad one ends the run before any model loads.

    Raises:
        UserError: a question has no passage at all.
    """
    total = fewer = 0
    for record in selected(args, path):
        total += 1
        fewer += len(record["ctxs"]) < args.K_docs
    if fewer:
        logger.info("%d of %d questions have fewer than K_docs=%d passages", fewer, total, args.K_docs)
    return total


def metrics_of(args: argparse.Namespace, predictions: list[Record], data_path: str | Path, prompts_hash: str) -> Record:
    """The results file's content for one list of predictions."""
    return summarize(
        predictions,
        split=f"{args.task} ({Path(data_path).name})",
        model=model_name(args),
        prompts_hash=prompts_hash,
        seed=args.seed,
        K_docs=args.K_docs,
        backend=args.backend,
        dtype=args.dtype,
        max_new_tokens=args.max_new_tokens,
    )


def make_writer(args: argparse.Namespace, path: Path, **inputs: str | Path | None) -> StageOutput:
    """The resumable output of one list of predictions."""
    flags = {"K_docs": args.K_docs, "max_new_tokens": args.max_new_tokens, "limit": args.limit}
    return StageOutput(path, stage_settings("generation", inputs, **generation_settings(args), **flags), args.overwrite)


def load(args: argparse.Namespace) -> tuple[Engine, PromptBuilder]:
    """The LLM and its prompts."""
    engine = load_engine(args)
    return engine, prompt_builder(args, engine.tokenizer, engine.context_length, args.max_new_tokens)


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", required=True, help="selection or retrieval output (questions with ctxs)")
    parser.add_argument(
        "--output_path", default=None, help="predictions; None: DATA.predictions.jsonl beside the input"
    )
    add_generation_arguments(parser)
    add_worker_arguments(parser)
    args = parser.parse_args()
    check_worker_arguments(args)
    check_engine_arguments(args)
    total = count_usable(args, args.data_path)
    path = Path(args.output_path or Path(args.data_path).with_suffix(".predictions.jsonl"))

    with make_writer(args, path, data_path=args.data_path) as writer:
        if not writer.complete:
            work = partial(map_texts, args, partial(AnswerWorker, args))
            write_in_chunks(writer, selected(args, args.data_path), CHUNK, work, "answering", total)
    metrics = metrics_of(args, list(read_records(path)), args.data_path, generation_settings(args)["prompts"])
    write_json(path.with_suffix(".metrics.json"), metrics)
    rows = [
        (name, 100 * score["mean"], f"{100 * score['low']:.2f} to {100 * score['high']:.2f}")
        for name, score in metrics["metrics"].items()
    ]
    print(f"{args.task}: {metrics['questions']} questions, percent\n")
    print(markdown_table(("metric", "mean", "95 % interval"), rows), end="")


if __name__ == "__main__":
    run_stage(main)
