"""The pseudo-passage: what the LLM itself knows about a question, as one more candidate."""

import argparse
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from gainRAG.cli import UserError, positive_int
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.llm_inference.engine import Engine, generation_settings, load_engine, map_texts, prompt_builder
from gainRAG.records import FieldError, Record, StageWriter, fingerprint, read_records, stage_settings, write_in_chunks

logger = logging.getLogger(__name__)

PSEUDO_ID = "pseudo"
CHUNK = 512  # questions


def add_background_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say where pseudo-passages come from."""
    group = parser.add_argument_group("pseudo-passage")
    group.add_argument("--no_pseudo", action="store_true", help="leave the LLM's own passage out")
    group.add_argument(
        "--background_path", default=None, metavar="FILE.jsonl", help="take pseudo-passages already written, by id"
    )
    group.add_argument(
        "--background_tokens", type=positive_int, default=160, help="longest pseudo-passage in tokens (~100 words)"
    )


def pseudo_passage(background: str) -> Record | None:
    """A background text as a candidate passage; None where the LLM knew nothing ("N/A" or no text)."""
    text = background.strip()
    if not text or text.upper().rstrip(".") in ("N/A", "NA", "NONE"):
        return None
    return {"id": PSEUDO_ID, "title": "", "text": text, "score": None, "is_pseudo": True}


def write_backgrounds(
    engine: Engine, builder: PromptBuilder, questions: Sequence[Record], max_new_tokens: int
) -> list[str]:
    """One background text a question, written from the question alone, in one batched pass."""
    return engine.generate([builder.background(question) for question in questions], max_new_tokens)


def read_backgrounds(path: str | Path, questions: Sequence[Record]) -> list[str]:
    """The backgrounds of a file for these questions, in their order.

    Raises:
        UserError: a question has none, by `id` and wording.
    """
    return list(map(background_lookup(path), questions))


def as_background(record: Record) -> Record:
    """`id`, `question` and the `background` that an LLM wrote, which may be empty."""
    for field in ("question", "background"):
        if not isinstance(record.get(field), str):
            raise FieldError(field, "missing, or not text")
    return record


def background_lookup(path: str | Path) -> Callable[[Record], str]:
    """From a question to its background in a file; the question is told from others by `id` and wording."""
    known = {
        (str(record.get("id")), record["question"]): record["background"]
        for record in read_records(path, as_background)
    }

    def background_of(question: Record) -> str:
        text = known.get((str(question.get("id")), question["question"]))
        if text is None:
            raise UserError(f"{path}: no background for id {question.get('id')!r} ({question['question']:.60})")
        return text

    return background_of


def background_file(path: Path, questions: Sequence[Record], args: argparse.Namespace, data_path: Path) -> list[str]:
    """The backgrounds kept at `path`, written there first (resumable) where they are not yet.

    Args:
        path: `.jsonl` with `id, question, background`.
        args: flags of `engine.add_engine_arguments` and `workers.add_worker_arguments`, `task` and `overwrite`.
        data_path: where the questions come from.
    """
    settings = stage_settings(
        "background",
        {"data_path": data_path},
        **generation_settings(args),
        max_new_tokens=args.background_tokens,
        questions=len(questions),
    )
    with StageWriter(path, settings, args.overwrite) as writer:
        if not writer.complete:
            work = partial(map_texts, args, partial(BackgroundWorker, args))
            write_in_chunks(writer, questions, CHUNK, work, "backgrounds")
    logger.info("backgrounds: %s (%s)", path, fingerprint(path))
    return read_backgrounds(path, questions)


class BackgroundWorker:
    """Writes the backgrounds of `background_file`; see `workers.Worker`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.tokens = args.background_tokens
        self.engine = load_engine(args)
        self.builder = prompt_builder(args, self.engine.tokenizer, self.engine.context_length, self.tokens)

    def __call__(self, chunks: Iterator[list[Record]]) -> Iterable[list[Record]]:
        return map(self.write, chunks)

    def write(self, chunk: list[Record]) -> list[Record]:
        """A record `id, question, background` a question."""
        texts = write_backgrounds(self.engine, self.builder, chunk, self.tokens)
        return [
            {"id": question.get("id"), "question": question["question"], "background": text}
            for question, text in zip(chunk, texts, strict=True)
        ]

    def close(self) -> None:
        self.engine.close()
