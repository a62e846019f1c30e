"""What every engine is, and what counts of a text that an LLM wrote: not its thoughts, nor what a base model adds
behind its answer."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gainRAG.evaluation.answers import THOUGHTS, without_thoughts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

THOUGHT = "thought"
LENGTH = "length"
FILTERED = "content_filter"
EMPTY = "empty"
REFUSED = "refused"
TROUBLES = {
    THOUGHT: "%d texts end inside a thought and count as empty: raise the limit of new tokens, or turn thinking off",
    LENGTH: "%d texts were cut at the limit of new tokens",
    EMPTY: "%d answers of the server have no content and count as empty",
    REFUSED: "%d prompts were refused by the server and count as answered by nothing",
    FILTERED: "%d texts were withheld by the server's content filter",
}

MARKS = {mark for pair in THOUGHTS for mark in pair} | {"<|channel|>", "<|message|>"}  # tokens of a thought's edges


def opens_thought(prompt: str) -> bool:
    """Whether the chat template ends a prompt inside a thought."""
    return prompt.rstrip().endswith(tuple(opening for opening, _ in THOUGHTS))


def decode_texts(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Sequence[int]]) -> list[str]:
    """Texts of token ids without special tokens, except those that mark thoughts."""
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True) if rows else []
    special = set(tokenizer.all_special_tokens)
    marks = set(tokenizer.convert_tokens_to_ids(list(special & MARKS)))
    for number, row in enumerate(rows):
        if not marks.isdisjoint(row):
            texts[number] = tokenizer.decode(row, skip_special_tokens=False)
            for token in special - MARKS:
                texts[number] = texts[number].replace(token, "")
    return texts


class Engine:
    """An LLM that continues prompts; its kinds share how texts are finished, and the count of those that went wrong.

    Args:
        chat: whether prompts have a chat template; without one a text ends where its first part does.

    Attributes:
        tokenizer: the LLM's, or None where a server tokenises.
        context_length: the most tokens of prompt and answer together, or None where unknown.
        troubles: for each prompt of the last call what went wrong, a key of TROUBLES, or "" where the text is whole.
        trouble_counts: the same of all calls.
    """

    tokenizer: "PreTrainedTokenizerBase | None" = None
    context_length: int | None = None

    def __init__(self, chat: bool) -> None:
        self.chat = chat
        self.troubles: list[str] = []
        self.trouble_counts: Counter[str] = Counter()

    def generate(self, prompts: Sequence[str], max_new_tokens: int, end: str = "\n") -> list[str]:
        """One continuation a prompt, in the prompts' order, stripped of white space.

        Args:
            prompts: full texts of `PromptBuilder`.
            max_new_tokens: the longest continuation, in tokens.
            end: where a base model's text ends, which would run on; a chat model's ends by itself.
        """
        raise NotImplementedError

    def finish(
        self, prompts: Sequence[str], written: Mapping[str, str], end: str, troubles: Mapping[str, str]
    ) -> list[str]:
        """The texts of a call's prompts as they count; fills in `troubles`.

        Args:
            written: prompt -> what the LLM wrote.
            end: where the text of a base model ends.
            troubles: prompt -> what the engine itself knows to be wrong. That a base model was cut behind the end of
                its text is no trouble.
        """
        found = {prompt: self._finish_one(prompt, text, end) for prompt, text in written.items()}
        if not self.chat:
            troubles = {prompt: name for prompt, name in troubles.items() if end not in written[prompt]}
        texts = [found[prompt][0] for prompt in prompts]
        self.troubles = [THOUGHT if found[prompt][1] else troubles.get(prompt, "") for prompt in prompts]
        self.trouble_counts.update(filter(None, self.troubles))
        return texts

    def _finish_one(self, prompt: str, text: str, end: str) -> tuple[str, bool]:
        text, unfinished = without_thoughts(text, self.chat and opens_thought(prompt))
        return text if self.chat else text.partition(end)[0].rstrip(), unfinished

    def close(self) -> None:
        """Frees the model's memory; warns of texts that went wrong."""
        for trouble, count in self.trouble_counts.items():
            logger.warning(TROUBLES[trouble], count)
        self.trouble_counts.clear()
