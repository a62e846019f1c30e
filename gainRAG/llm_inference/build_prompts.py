"""From a question and its passages to the full prompt text: wording, chat template, and a cut where it is too long."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import Record
from gainRAG.prompts import Prompts, Task, question_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def require_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Checks that chat prompts can be made.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template; name a chat model, or pass --no_chat"
        )


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
        self.prompts = prompts
        self.task = task
        self.tokenizer = tokenizer
        self.chat = chat
        self.max_tokens = max_tokens
        self.cut = 0

    def with_passages(self, record: Record, passages: Sequence[Record]) -> str:
        """The prompt that asks `record`'s question with passages at hand, best first."""
        prompt = self._with_evidence(record, self.prompts.evidence(passages))
        excess = self._excess(prompt)
        if not excess:
            return prompt
        self.cut += 1
        passages = list(passages)
        while excess and passages:
            text = self._shorten(passages[-1]["text"], excess)
            if text:
                passages[-1] = {**passages[-1], "text": text}
            else:
                passages.pop()
            if not passages:
                return self.without_passage(record)
            prompt = self._with_evidence(record, self.prompts.evidence(passages))
            excess = self._excess(prompt)
        return prompt

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
        text = self.prompts.background.format(question=question_text(record))
        return self._require_fit(record, self._wrap(text, cue="\n\n"))

    def _require_fit(self, record: Record, prompt: str) -> str:
        if excess := self._excess(prompt):
            raise UserError(
                f"question {record.get('id')!r} ({record['question']:.60}): its prompt is {excess} tokens longer than "
                f"the {self.max_tokens} that the LLM's context leaves; take the question out"
            )
        return prompt

    def _question_fields(self, record: Record) -> dict[str, str]:
        return {"instruction": self.task.instruction, "label": self.task.label, "question": question_text(record)}

    def _with_evidence(self, record: Record, evidence: str) -> str:
        return self._wrap(self.prompts.with_passages.format(**self._question_fields(record), evidence=evidence))

    def _wrap(self, text: str, cue: str | None = None) -> str:
        if self.tokenizer is None:
            return text
        if not self.chat:
            return text + (self.prompts.base_model_cue if cue is None else cue)
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    def _excess(self, prompt: str) -> int:
        if self.tokenizer is None or self.max_tokens is None or len(prompt.encode()) <= self.max_tokens:
            return 0  # a token is at least one byte, so a short text need not be tokenised
        return max(0, len(self.tokenizer(prompt, add_special_tokens=False).input_ids) - self.max_tokens)

    def _shorten(self, text: str, tokens: int) -> str:
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        kept = len(offsets) - tokens
        return text[: offsets[kept][0]].rstrip() if kept > 0 else ""
