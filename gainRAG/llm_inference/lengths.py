"""Which questions are too long for the LLM: found where its tokenizer is loaded, before any model."""

import argparse
import logging
from collections.abc import Sequence

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import FieldError, Record
from gainRAG.llm_inference.build_prompts import encode_answers, encode_prompts
from gainRAG.llm_inference.engine import EngineOptions, GenerationOptions, context_length, prompt_builder

logger = logging.getLogger(__name__)

REMEDY = "or pass --skip_too_long, which leaves such questions out"


def add_length_arguments(parser: argparse.ArgumentParser) -> None:
    """The flag that leaves out what is too long."""
    parser.add_argument(
        "--skip_too_long",
        action="store_true",
        help="leave out, and count, questions that do not fit the LLM's context; without it the first one ends the run "
        "(a server alone knows what is too long for it: --keep_refused)",
    )


class LengthCheck:
    """Checks a question's length; the last part of a shape for `read_records`. Making one takes about a second, and
    finds out whether the LLM can be given prompts: its tokenizer alone is loaded.

    Args:
        engine: the LLM; nothing is checked where a server runs it, which alone has its tokenizer.
        generation: how it is asked.
        reserved_tokens: as `prompt_builder` takes them.
        skip: leave out what is too long, rather than raise.
        pseudo_tokens: the longest pseudo-passage that the LLM will write; 0 where it writes none.
        scores_answers: whether the gold answers are scored behind the prompts of the record's `passages`.

    Attributes:
        skipped: how many questions were left out so far.

    Raises:
        UserError: no such weights, task or prompt file, no usable tokenizer, or a chat model's without a template.
    """

    def __init__(
        self,
        engine: EngineOptions,
        generation: GenerationOptions,
        reserved_tokens: int,
        skip: bool = False,
        pseudo_tokens: int = 0,
        scores_answers: bool = False,
    ) -> None:
        self.context_length = context_length(engine)
        self.tokenizer = None
        if engine.backend != "openai":
            from gainRAG.llm_inference.inference_hf import load_tokenizer

            self.tokenizer = load_tokenizer(engine.lm_type)
        self.builder = prompt_builder(engine, generation, self.tokenizer, self.context_length, reserved_tokens)
        self.reserved_tokens = reserved_tokens
        self.skip = skip
        self.pseudo_tokens = pseudo_tokens
        self.scores_answers = scores_answers
        self.skipped = 0

    def __call__(self, record: Record) -> Record | None:
        """The record, or None where it is too long and is to be left out.

        Raises:
            FieldError: it is too long.
        """
        try:
            self._check_question(record)
            if self.scores_answers and self.context_length:
                self._check_answers(record)
        except FieldError:
            if not self.skip:
                raise
            self.skipped += 1
            return None
        return record

    def _check_question(self, record: Record) -> None:
        try:
            self.builder.without_passage(record)
            if self.pseudo_tokens:
                self.builder.background(record)
        except UserError as problem:
            raise FieldError("question", f"{problem}, {REMEDY}") from None

    def _check_answers(self, record: Record) -> None:
        # Prompts leave `reserved_tokens` free, which a short answer does not reach whatever its tokens are.
        longer = [answer for answer in record["answers"] if 2 * len(answer.encode()) + 2 > self.reserved_tokens]
        if not longer:
            return
        room = self.context_length - self._longest_prompt(record) - 1  # vLLM writes one more token
        for answer, ids in zip(longer, encode_answers(self.tokenizer, longer, self.builder.chat), strict=True):
            if len(ids) > room:
                raise FieldError(
                    "answers",
                    f"question {record.get('id')!r} ({record['question']:.60}): {answer!r:.60} has {len(ids)} tokens, "
                    f"and its prompts leave {room} of the LLM's context; shorten it, take the question out, {REMEDY}",
                )

    def _longest_prompt(self, record: Record) -> int:
        texts = [self.builder.without_passage(record)]
        texts += [self.builder.with_passages(record, [passage]) for passage in record["passages"]]
        longest = max(self._count(texts))
        if self.pseudo_tokens:  # not written yet; read again, a text may have other tokens than it was written with
            (bare,) = self._count([self.builder.with_passages(record, [{"title": "", "text": "x"}])])
            longest = max(longest, min(bare + 2 * self.pseudo_tokens, self.context_length - self.reserved_tokens))
        return longest

    def _count(self, texts: Sequence[str]) -> list[int]:
        return list(map(len, encode_prompts(self.tokenizer, texts, self.builder.chat)))

    def report(self, total: int) -> None:
        """Logs how many were left out, after one pass over the input.

        Raises:
            UserError: nothing is left.
        """
        if self.skipped:
            logger.warning("%d questions are too long for the LLM and are left out", self.skipped)
        if not total:
            raise UserError(
                f"all {self.skipped} questions are too long for the LLM; smaller --background_tokens or "
                "--max_new_tokens leave more room"
            )
