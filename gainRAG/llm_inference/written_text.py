"""What counts of a text that an LLM wrote, and what may be wrong with it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gainRAG.evaluation.answers import THOUGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
