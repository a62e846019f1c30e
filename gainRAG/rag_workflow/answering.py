"""What the stages share that have an LLM answer questions from passages: flags, input, output, records and means."""

import argparse
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from gainRAG.common.cli import positive_int
from gainRAG.common.jsonl import FieldError, Record, read_records
from gainRAG.common.resume import StageOutput, stage_settings
from gainRAG.common.schemas import as_retrieved
from gainRAG.evaluation.answers import accuracy, option_labels, score_prediction
from gainRAG.evaluation.results import summarize
from gainRAG.llm_inference.engine import (
    EngineOptions,
    GenerationOptions,
    add_engine_arguments,
    generation_settings,
)
from gainRAG.prompts import Task, load_prompts

logger = logging.getLogger(__name__)

CHUNK = 256  # questions


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of whatever answers questions."""
    parser.add_argument("--task", required=True, help="whose prompt and metric to use, e.g. HotpotQA, ARC_Challenge")
    parser.add_argument("--K_docs", type=positive_int, default=1, help="passages in the prompt, best first")
    parser.add_argument("--max_new_tokens", type=positive_int, default=32, help="longest answer, in tokens")
    parser.add_argument("--limit", type=positive_int, default=None, help="only the first questions")
    parser.add_argument("--overwrite", action="store_true", help="start afresh, whatever is there")
    add_engine_arguments(parser)


def read_answerable(path: str | Path, limit: int | None) -> Iterator[Record]:
    """The first questions of a selection or retrieval file, each with a passage at least.

    Raises:
        UserError: a record is unusable, or has no passage.
    """
    return itertools.islice(read_records(path, as_answerable), limit)


def as_answerable(record: Record) -> Record:
    """A question with `ctxs`, at least one."""
    record = as_retrieved(record)
    if not record["ctxs"]:
        raise FieldError("ctxs", "empty; wanted at least one passage")
    return record


def read_questions(
    path: str | Path, limit: int | None, k: int, shape: Callable[[Record], Record] = as_answerable
) -> list[Record]:
    """The first questions without their passages. Reads every record, so that a bad one ends the run before any model
    loads; questions with fewer than `k` passages are counted in the log."""
    questions, fewer = [], 0
    for record in itertools.islice(read_records(path, shape), limit):
        fewer += len(record["ctxs"]) < k
        questions.append({name: value for name, value in record.items() if name != "ctxs"})
    if fewer:
        logger.info("%d of %d questions have fewer than K_docs=%d passages", fewer, len(questions), k)
    return questions


def open_predictions(
    path: Path,
    inputs: dict[str, str | Path | None],
    engine: EngineOptions,
    generation: GenerationOptions,
    k: int,
    limit: int | None,
    overwrite: bool,
) -> StageOutput:
    """The resumable output of one list of predictions.

    Args:
        inputs: flag name -> the file that passages come from.
        k: passages in the prompt.
    """
    flags = {"K_docs": k, "max_new_tokens": generation.max_new_tokens, "limit": limit}
    settings = stage_settings("generation", inputs, **generation_settings(engine, generation), **flags)
    return StageOutput(path, settings, overwrite)


def answer_chunk(
    chunk: list[Record], prompt_of: Callable[[Record], str], write: Callable[[list[str]], list[str]], task: Task
) -> list[Record]:
    """The output records of some questions.

    Args:
        prompt_of: a question's full prompt.
        write: prompts -> predictions, in order.
    """
    prompts = [prompt_of(record) for record in chunk]
    return [score_record(*case, task) for case in zip(chunk, prompts, write(prompts), strict=True)]


def score_record(record: Record, prompt: str, prediction: str, task: Task) -> Record:
    """One generation output record; `accuracy` joins the scores for option and true/false tasks."""
    scores = score_prediction(prediction, record["answers"])
    if task.metric == "accuracy":
        scores["accuracy"] = float(accuracy(prediction, record["answers"], option_labels(record)))
    kept = {name: record.get(name) for name in ("id", "question", "answers")}
    return {**kept, "prompt": prompt, "prediction": prediction, **scores}


def summarize_predictions(
    predictions: list[Record], data_path: str | Path, engine: EngineOptions, generation: GenerationOptions, k: int
) -> Record:
    """The results file's content for one list of predictions."""
    return summarize(
        predictions,
        split=f"{generation.task} ({Path(data_path).name})",
        model=engine.model_name,
        prompts_hash=load_prompts(generation.prompts).hash(),
        seed=engine.seed,
        K_docs=k,
        backend=engine.backend,
        dtype=engine.dtype,
        max_new_tokens=generation.max_new_tokens,
    )
