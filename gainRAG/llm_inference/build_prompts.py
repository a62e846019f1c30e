"""From a question and its passages to the full prompt text and its tokens: wording, chat template, a cut where it is
too long, and what a base model gets in place of a chat template."""

import logging
import re
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import Record
from gainRAG.prompts import Prompts, Task, question_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def require_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Checks that chat prompts can be made.

    Raises:
        UserError: the tokenizer has no chat template, or one that takes no user turn.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template; name a chat model, or pass --no_chat"
        )
    try:
        apply_template(tokenizer, [{"role": "user", "content": "Who?"}])
    except (TemplateError, ValueError) as problem:  # ValueError: several templates, and none of them the default
        raise UserError(f"{tokenizer.name_or_path}: its chat template takes no question: {problem}") from None


PROMPT_DATE = date(2024, 7, 26)  # what templates that show today's date show, so that every run has the same prompts
MOST_START_TOKENS = 8  # that any tokenizer puts before a text
ANCHOR = ":"  # what comes before the space and the answer while that is tokenised, as at the end of a prompt


def encode_prompts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], chat: bool) -> list[list[int]]:
    """Token ids of prompt texts, as every engine and the gain give them to the LLM.

    Args:
        texts: of `PromptBuilder`.
        chat: whether the chat template is in them already, with all special tokens; where none is, the tokenizer's
            own ones at the start (BOS) are added.
    """
    if not texts:
        return []
    ids = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False).input_ids
    start = [] if chat else start_tokens(tokenizer)
    return [start + row for row in ids]


def encode_answers(tokenizer: "PreTrainedTokenizerBase", answers: Sequence[str], chat: bool) -> list[list[int]]:
    """Token ids of answers that follow a prompt of `encode_prompts`.

    With a chat template an answer starts a turn. Without one it follows the prompt's last word after a space, which
    most tokenizers make a part of the answer's first token.
    """
    tokens = control_tokens(tokenizer)
    answers = [escape_control_tokens(answer, tokens) for answer in answers]
    if chat:
        return encode_prompts(tokenizer, answers, chat)
    spaced = [f" {answer.strip()}" for answer in answers]
    anchor, *rows = encode_prompts(tokenizer, [ANCHOR, *(ANCHOR + answer for answer in spaced)], chat=True)
    apart = encode_prompts(tokenizer, spaced, chat=True)
    return [
        row[len(anchor) :] if row[: len(anchor)] == anchor else alone for row, alone in zip(rows, apart, strict=True)
    ]


def start_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The special tokens that the tokenizer itself puts before a text, such as BOS."""
    plain, full = (tokenizer("a", add_special_tokens=added).input_ids for added in (False, True))
    return next((full[:start] for start in range(len(full)) if full[start : start + len(plain)] == plain), [])


# Control tokens of common chat formats, for prompts that a server tokenises.
COMMON_CONTROL_TOKENS = re.compile(
    r"<\|[\w-]+\|>|</?s>|<[be]os>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</?think>"
)


def control_tokens(tokenizer: "PreTrainedTokenizerBase | None") -> re.Pattern:
    """Matches what the LLM would read as a control token wherever it appears in a text."""
    if tokenizer is None:
        return COMMON_CONTROL_TOKENS
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    tokens = {token for token, special in added.items() if special} | ({"<think>", "</think>"} & added.keys())
    tokens = {token for token in tokens | set(tokenizer.all_special_tokens) if _is_control(token)}
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _is_control(token: str) -> bool:
    """Whether a special token is not text besides, as where "!" or a line break serves for padding."""
    return len(token) > 2 and not token[0].isalnum() and not token.isspace()


def escape_control_tokens(text: str, tokens: re.Pattern) -> str:
    """Data as plain text: a space behind the first character of each control token makes it none."""
    return tokens.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def apply_template(tokenizer: "PreTrainedTokenizerBase", turns: list[Record]) -> str:
    """The turns in the tokenizer's chat template, up to where the LLM's own turn begins: without thoughts where the
    template can turn them off, and with one date for all runs where it shows today's."""
    return tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=False, strftime_now=PROMPT_DATE.strftime
    )


def takes_system_turn(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template takes a system turn; some raise an error, and some drop it."""
    from jinja2 import TemplateError

    turns = [{"role": "system", "content": "Reply in Latin."}, {"role": "user", "content": "Who?"}]
    try:
        return "Reply in Latin." in apply_template(tokenizer, turns)
    except TemplateError:
        return False


class PromptBuilder:
    """Builds the prompts of one task for one model.

    Args:
        prompts: the wording.
        task: whose instruction the prompt gives.
        tokenizer: the LLM's; None leaves text as it is (a server applies its own chat template).
        chat: wrap the text in the tokenizer's chat template as one user turn.
        max_tokens: the longest prompt; a longer one is cut inside its passages, the last one first, and never
            inside the question.

    Attributes:
        cut: how many prompts were cut so far.

    Raises:
        UserError: a chat model whose tokenizer has no chat template.
    """

    def __init__(
        self,
        prompts: Prompts,
        task: Task,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        chat: bool = True,
        max_tokens: int | None = None,
    ) -> None:
        if tokenizer is not None and chat:
            require_chat_template(tokenizer)
        self.system = [{"role": "system", "content": prompts.system}] if prompts.system else []
        if self.system and tokenizer is not None and chat and not takes_system_turn(tokenizer):
            logger.warning("%s: its chat template takes no system turn; prompts go without", tokenizer.name_or_path)
            self.system = []
        self._control_tokens = control_tokens(tokenizer)
        self.prompts = prompts
        self.task = task
        self.tokenizer = tokenizer
        self.chat = chat
        self.max_tokens = max_tokens
        self.cut = 0

    def with_passages(self, record: Record, passages: Sequence[Record]) -> str:
        """The prompt that asks `record`'s question with passages at hand, best first; with none, the question alone."""
        fields = self._question_fields(record)
        kept, cut = [self._as_plain_text(passage) for passage in passages], False
        while kept:
            evidence = self.prompts.evidence(kept)
            prompt = self._wrap(self.prompts.with_passages.format(**fields, evidence=evidence))
            excess = self._excess(prompt)
            if not excess:
                return prompt
            self.cut += not cut
            cut = True
            last = kept.pop()
            if text := self._shorten(last["text"], excess):
                kept.append({**last, "text": text})
        return self.without_passage(record)

    def report_cuts(self) -> None:
        """Logs how many prompts were cut, if any."""
        if self.cut:
            logger.info("%d prompts were too long for the LLM and were cut inside the passage", self.cut)

    def without_passage(self, record: Record) -> str:
        """The prompt that asks the question alone.

        Raises:
            UserError: even that is too long.
        """
        return self._require_fit(
            record, self._wrap(self.prompts.without_passage.format(**self._question_fields(record)))
        )

    def background(self, record: Record) -> str:
        """The prompt that asks for a pseudo-passage (paper section 3: the LLM's own knowledge as a candidate)."""
        text = self.prompts.background.format(question=self._escape(question_text(record)))
        return self._require_fit(record, self._wrap(text, cue="\n\n"))

    def _require_fit(self, record: Record, prompt: str) -> str:
        if excess := self._excess(prompt):
            raise UserError(
                f"question {record.get('id')!r} ({record['question']:.60}): its prompt is {excess} tokens longer than "
                f"the {self.max_tokens} that the LLM's context leaves; take the question out"
            )
        return prompt

    def _question_fields(self, record: Record) -> dict[str, str]:
        return {
            "instruction": self.task.instruction,
            "label": self.task.label,
            "question": self._escape(question_text(record)),
        }

    def _as_plain_text(self, passage: Record) -> Record:
        title, text = self._escape(passage.get("title") or ""), self._escape(passage["text"])
        return {**passage, "title": title, "text": text}

    def _escape(self, text: str) -> str:
        return escape_control_tokens(text, self._control_tokens)

    def _wrap(self, text: str, cue: str | None = None) -> str:
        if self.tokenizer is None:
            return text
        if not self.chat:
            text += self.prompts.base_model_cue if cue is None else cue
            return text.rstrip(" ")  # a space belongs to the first token of what follows
        return apply_template(self.tokenizer, [*self.system, {"role": "user", "content": text}])

    def _excess(self, prompt: str) -> int:
        if self.tokenizer is None or self.max_tokens is None:
            return 0
        if len(prompt.encode()) < self.max_tokens - MOST_START_TOKENS:
            return 0  # a token is at least one byte, so a short text need not be tokenised
        return max(0, len(encode_prompts(self.tokenizer, [prompt], self.chat)[0]) - self.max_tokens)

    def _shorten(self, text: str, tokens: int) -> str:
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        kept = len(offsets) - tokens
        return text[: offsets[kept][0]].rstrip() if kept > 0 else ""
