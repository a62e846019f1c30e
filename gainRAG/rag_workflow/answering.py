"""What the stages share that have an LLM answer questions from passages: flags, input, output, records and means."""

import argparse
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gainRAG.common.cli import UserError, add_overwrite_argument, keep_apart, positive_int
from gainRAG.common.jsonl import Record, read_records
from gainRAG.common.progress import report_few_passages
from gainRAG.common.resume import StageOutput
from gainRAG.common.schemas import as_retrieved
from gainRAG.common.settings import stage_settings
from gainRAG.evaluation.answers import accuracy, option_labels, score_prediction
from gainRAG.evaluation.results import summarize
from gainRAG.llm_inference.engine import (
    EngineOptions,
    GenerationOptions,
    Writer,
    add_engine_arguments,
    generation_settings,
)
from gainRAG.llm_inference.lengths import LengthCheck, add_length_arguments
from gainRAG.prompts import Task, load_prompts

logger = logging.getLogger(__name__)

CHUNK = 256  # questions
LEAST_CHUNK = 64
OWN_FIELDS = ("ctxs", "accuracy", "trouble")  # a question's fields of these names are not taken for an output's

Answer = tuple[str, str]  # its text, and what went wrong with it (llm_inference.written_text) or ""


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of whatever answers questions."""
    parser.add_argument("--task", required=True, help="whose prompt and metric to use, e.g. HotpotQA, ARC_Challenge")
    parser.add_argument("--K_docs", type=positive_int, default=1, help="passages in the prompt, best first")
    parser.add_argument("--max_new_tokens", type=positive_int, default=32, help="longest answer, in tokens")
    parser.add_argument("--limit", type=positive_int, default=None, help="only the first questions")
    add_overwrite_argument(parser)
    add_length_arguments(parser)
    add_engine_arguments(parser)


def read_answerable(
    path: str | Path, limit: int | None, lengths: LengthCheck, shape: Callable[[Record], Record] = as_retrieved
) -> Iterator[Record]:
    """The first questions of a selection or retrieval file that fit the LLM.

    Args:
        shape: what checks a record.

    Raises:
        UserError: a record is unusable, or is too long and not to be skipped.
    """
    return itertools.islice(read_records(path, lambda record: lengths(shape(record))), limit)


def check_questions(records: Iterable[Record], k: int) -> list[Record]:
    """The questions without their passages. Reads every record, so that a bad one ends the run before any model loads;
    questions with fewer than `k` passages, and with none, are counted in the log.

    Raises:
        UserError: no question has a passage.
    """
    questions, fewer, none = [], 0, 0
    for record in records:
        fewer += len(record["ctxs"]) < k
        none += not record["ctxs"]
        questions.append({name: value for name, value in record.items() if name != "ctxs"})
    if questions and none == len(questions):
        raise UserError("no question has a passage in its 'ctxs'; wanted retrieval or selection output")
    if none:
        logger.warning("%d of %d questions have no passage and are answered without one", none, len(questions))
    report_few_passages(fewer, len(questions), "--K_docs", k)
    return questions


def open_predictions(
    path: Path,
    inputs: dict[str, str | Path | None],
    engine: EngineOptions,
    generation: GenerationOptions,
    k: int,
    limit: int | None,
    skip_too_long: bool,
    overwrite: str,
) -> StageOutput:
    """The resumable output of one list of predictions.

    Args:
        inputs: flag name -> the file that passages come from.
        k: passages in the prompt.

    Raises:
        UserError: `path` is one of the inputs, or as `StageOutput`.
    """
    keep_apart(path, *inputs.values())
    flags = {"K_docs": k, "max_new_tokens": generation.max_new_tokens, "limit": limit, "skip_too_long": skip_too_long}
    settings = stage_settings("generation", inputs, **generation_settings(engine, generation), **flags)
    return StageOutput(path, settings, overwrite)


def write_answers(writer: Writer, prompts: list[str]) -> list[Answer]:
    """The LLM's answers, in order, each with what went wrong."""
    texts = writer.engine.generate(prompts, writer.max_new_tokens)
    return list(zip(texts, writer.engine.troubles, strict=True))


def score_record(record: Record, prompt: str, answer: Answer, task: Task) -> Record:
    """One generation output record. `accuracy` joins the scores for option and true/false tasks, `trouble` an answer
    that went wrong; the question's other fields pass through behind ours."""
    prediction, trouble = answer
    scored = {name: record.get(name) for name in ("id", "question", "answers")}
    scored |= {"prompt": prompt, "prediction": prediction, **score_prediction(prediction, record["answers"])}
    if task.metric == "accuracy":
        scored["accuracy"] = float(accuracy(prediction, record["answers"], option_labels(record)))
    if trouble:
        scored["trouble"] = trouble
    passed = {name: value for name, value in record.items() if name not in scored and name not in OWN_FIELDS}
    return {**scored, **passed}


def summarize_predictions(
    predictions: list[Record],
    data_path: str | Path,
    engine: EngineOptions,
    generation: GenerationOptions,
    k: int,
    too_long: int,
) -> Record:
    """The results file's content for one list of predictions; `troubles` counts the answers that went wrong, as those
    cut at `max_new_tokens` or inside a thought.

    Args:
        too_long: questions that were left out for their length.
    """
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
        too_long=too_long,
        troubles=Counter(record["trouble"] for record in predictions if "trouble" in record),
    )
