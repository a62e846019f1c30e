"""The pseudo-passage: what the LLM itself knows about a question, as one more candidate (paper section 3).

The flags and files that hold such texts are called background, as in the published code.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gainRAG.common.batching import chunk_size
from gainRAG.common.cli import UserError, positive_int
from gainRAG.common.jsonl import FieldError, Record, read_records
from gainRAG.common.parallel import WorkerOptions, map_chunks
from gainRAG.common.resume import StageOutput
from gainRAG.common.settings import fingerprint, stage_settings
from gainRAG.evaluation.answers import without_thoughts
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.llm_inference.engine import (
    Engine,
    EngineOptions,
    GenerationOptions,
    Writer,
    generation_settings,
    writing_workers,
)

logger = logging.getLogger(__name__)

PSEUDO_ID = "pseudo"
NOTHING = "N/A"
CHUNK = 512  # questions
LEAST_CHUNK = 64


@dataclass(frozen=True)
class PseudoPassageOptions:
    """Where pseudo-passages come from; the flags of `add_background_arguments`.

    Attributes:
        wanted: whether the LLM's own passage is a candidate at all.
        path: a file of pseudo-passages written before, or None: the LLM writes them.
        max_new_tokens: the longest pseudo-passage, in tokens.
        keep_na: whether "N/A" is a candidate as well, as in the published code.
    """

    wanted: bool = True
    path: Path | None = None
    max_new_tokens: int = 160
    keep_na: bool = False

    @property
    def written_here(self) -> bool:
        """Whether the LLM has to write them."""
        return self.wanted and self.path is None


def add_background_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that decide where pseudo-passages come from."""
    group = parser.add_argument_group("pseudo-passage")
    group.add_argument("--no_pseudo", action="store_true", help="leave the LLM's own passage out")
    group.add_argument(
        "--background_path", default=None, metavar="FILE.jsonl", help="take pseudo-passages already written, by id"
    )
    group.add_argument(
        "--background_tokens", type=positive_int, default=160, help="longest pseudo-passage in tokens (~100 words)"
    )
    group.add_argument(
        "--keep_na", action="store_true", help='"N/A", for an LLM that knows nothing, is a candidate too, as published'
    )


def pseudo_passage_options(
    *, no_pseudo: bool, background_path: str | None, background_tokens: int, keep_na: bool, **_
) -> PseudoPassageOptions:
    """From the parsed flags (`**vars(args)`) those of `add_background_arguments`."""
    path = Path(background_path) if background_path else None
    return PseudoPassageOptions(not no_pseudo, path, background_tokens, keep_na)


def pseudo_passage(text: str, keep_na: bool = False) -> Record | None:
    """The text as a candidate passage; None where the LLM knew nothing ("N/A" or no text).

    Args:
        keep_na: make "N/A" a candidate as well: choosing it means that no passage is chosen.
    """
    text = without_thoughts(text)[0] or NOTHING  # a file of them may come from elsewhere
    if not keep_na and text.upper().rstrip(".") in (NOTHING, "NA", "NONE"):
        return None
    return {"id": PSEUDO_ID, "title": "", "text": text, "score": None, "is_pseudo": True}


def write_pseudo_passages(
    engine: Engine, builder: PromptBuilder, questions: Sequence[Record], max_new_tokens: int
) -> list[str]:
    """One text a question, written from the question alone, in one batched pass; a base model's first paragraph."""
    return engine.generate([builder.background(question) for question in questions], max_new_tokens, end="\n\n")


def as_background(record: Record) -> Record:
    """`id`, `question` and the `background` that an LLM wrote, which may be empty."""
    for field in ("question", "background"):
        if not isinstance(record.get(field), str):
            raise FieldError(field, "missing, or not text")
    return record


def pseudo_passage_lookup(path: str | Path) -> Callable[[Record], str]:
    """From a question to its text in a file of pseudo-passages; found by `id` and wording."""
    known = {
        (str(record.get("id")), record["question"]): record["background"]
        for record in read_records(path, as_background)
    }

    def text_of(question: Record) -> str:
        text = known.get((str(question.get("id")), question["question"]))
        if text is None:
            raise UserError(
                f"{path}: no pseudo-passage for id {question.get('id')!r} ({question['question']:.60}); if "
                "--skip_too_long left it out there, data/prepare_sample.py --also_in takes it out of --data_path"
            )
        return text

    return text_of


def background_settings(engine: EngineOptions, generation: GenerationOptions) -> Record:
    """What changes the pseudo-passages that an LLM writes."""
    return {**generation_settings(engine, generation), "max_new_tokens": generation.max_new_tokens}


def write_pseudo_passage_file(
    path: Path,
    questions: Sequence[Record],
    data_path: str | Path,
    engine: EngineOptions,
    generation: GenerationOptions,
    workers: WorkerOptions,
    overwrite: str = "",
) -> list[str]:
    """The pseudo-passages kept at `path`, in the order of the questions; written there first where they are missing.

    Args:
        path: `.jsonl` with `id, question, background`; resumable.
        data_path: where the questions come from.
        generation: its `max_new_tokens` is the longest pseudo-passage.
    """
    flags = background_settings(engine, generation)
    settings = stage_settings("background", {"data_path": data_path}, **flags, questions=len(questions))
    with StageOutput(path, settings, overwrite) as output:
        workers = writing_workers(engine, workers)
        size = chunk_size(CHUNK, LEAST_CHUNK, len(questions), workers.num_workers)
        chunks = output.remaining(questions, size, "pseudo-passages")
        writer = partial(PseudoPassageWriter, engine, generation)
        for written in map_chunks(writer, chunks, workers):
            output.append(written)
    logger.info("pseudo-passages: %s (%s)", path, fingerprint(path))
    return list(map(pseudo_passage_lookup(path), questions))


class PseudoPassageWriter(Writer):
    """A worker (common.parallel): questions -> records `id, question, background`."""

    def __call__(self, chunk: list[Record]) -> list[Record]:
        texts = write_pseudo_passages(self.engine, self.builder, chunk, self.max_new_tokens)
        return [
            {"id": question.get("id"), "question": question["question"], "background": text}
            for question, text in zip(chunk, texts, strict=True)
        ]
