"""Does a passage hold a gold answer, and how often do the first k passages: DPR's rule (Karpukhin et al., 2020).

Text and answer are brought to Unicode form NFD, cut into tokens (runs of letters, numbers and marks, or one other
visible character) and lower-cased; the answer's tokens must stand in a row in the text's. Here both become one
string, each token between single spaces, so that the search is a substring test and a text is cut only once.

Scripts without spaces between words (Chinese, Japanese, Thai) have no such tokens: there the answer's characters in a
row are wanted (`characters`), a rule of ours. Retrieval chooses it for a run, and notes it in its records.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import regex

from gainRAG.common.cli import UserError

KS = (1, 5, 10, 20, 50, 100)
MATCHES = ("tokens", "characters")
MATCH = "answer_match"  # the field of a question that says how its answers are looked for, unless by tokens


_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]")
_INVISIBLE = regex.compile(r"[\p{Z}\p{C}]")
_unchanged = {" "}  # grows by the word characters that texts hold: set differences are quicker than a pattern


@lru_cache(None)
def _spaced(character: str) -> str:
    if _WORD.match(character):
        return character
    return " " if _INVISIBLE.match(character) else f" {character} "


def token_string(text: str) -> str:
    """DPR's uncased tokens of `text`, with one space before, between and after them; " " if there are none."""
    text = unicodedata.normalize("NFD", text)
    for character in set(text) - _unchanged:
        spaced = _spaced(character)
        if spaced == character:
            _unchanged.add(character)
        else:
            text = text.replace(character, spaced)
    # Lower-casing comes last: the form of a Greek sigma depends on where its token ends.
    tokens = " ".join(text.split()).lower()
    return f" {tokens} " if tokens else " "


def character_string(text: str) -> str:
    """The characters of `text` in one form and in lower case (Unicode form NFKC), runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


class AnswerMatcher:
    """One question's gold answers, ready to be looked for in many passages.

    Args:
        answers: gold answers. One without any token is found in every text, as in DPR's rule.
        match: "tokens", DPR's rule, or "characters".
    """

    def __init__(self, answers: Sequence[str], match: str = "tokens") -> None:
        answers = [answers] if isinstance(answers, str) else answers
        self._by_characters = match == "characters"
        if self._by_characters:
            self._characters = list(map(character_string, answers))
            return
        needles = dict.fromkeys(map(token_string, answers))
        self._needles = [(max(_letters(needle).split(), key=len, default=""), needle) for needle in needles]

    def matches(self, text: str) -> bool:
        """Whether `text` (a passage without its title, as DPR does) holds one of the answers."""
        if self._by_characters:
            characters = character_string(text)
            return any(answer in characters for answer in self._characters)
        letters = _letters(unicodedata.normalize("NFD", text))
        possible = [needle for longest_token, needle in self._needles if longest_token in letters]
        if not possible:  # most passages end here, before the costly cutting
            return False
        tokens = token_string(text)
        return any(needle in tokens for needle in possible)


def _letters(text: str) -> str:
    """Lower case in which a letter's form does not depend on its neighbours."""
    return text.lower().replace("ς", "σ")


def has_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether `text` holds one of `answers` by DPR's rule; for many texts make one AnswerMatcher."""
    return AnswerMatcher(answers).matches(text)


def match_rule(question: dict[str, Any]) -> str:
    """How a question's answers are looked for: as retrieval noted in it, else by tokens.

    Raises:
        UserError: there is no such rule.
    """
    match = question.get(MATCH, "tokens")
    if match not in MATCHES:
        raise UserError(f"question {question.get('id')!r}: field '{MATCH}': {match!r:.40} is none of {MATCHES}")
    return match


def find_hits(question: dict[str, Any], passages: Iterable[dict[str, Any]]) -> list[bool]:
    """Which of the passages hold a gold answer of the question, by its own rule."""
    matcher = AnswerMatcher(question["answers"], match_rule(question))
    return [matcher.matches(passage["text"]) for passage in passages]


def mark_hits(
    passages: Iterable[dict[str, Any]], answers: Sequence[str], match: str = "tokens"
) -> list[dict[str, Any]]:
    """The passages, each with a boolean `hasanswer`: judged by `AnswerMatcher` where it is missing or null."""
    matcher = AnswerMatcher(answers, match)
    return [{**passage, "hasanswer": is_hit(passage, matcher)} for passage in passages]


def is_hit(passage: dict[str, Any], matcher: AnswerMatcher, field: str = "hasanswer") -> bool:
    """The passage's `field`, judged by the matcher where it is missing or null."""
    hit = passage.get(field)
    return matcher.matches(passage["text"]) if hit is None else bool(hit)


def recall_at(results: Iterable[dict[str, Any]], ks: Sequence[int] = KS) -> dict[int, float]:
    """Recall@k: the share of questions whose first k passages include one that holds a gold answer.

    Args:
        results: records with `ctxs`, best first, each with a boolean `hasanswer`; fewer than k passages count as
            they are. Recall@1 of a selector's output is the share of picked passages that hold the answer.
        ks: depths, in passages.

    Raises:
        UserError: there are no records, or a passage lacks `hasanswer`.
    """
    first_hits = [_first_hit(record) for record in results]
    if not first_hits:
        raise UserError("Recall@k needs at least one question")
    return {k: sum(rank is not None and rank < k for rank in first_hits) / len(first_hits) for k in ks}


def _first_hit(record: dict[str, Any]) -> int | None:
    for rank, passage in enumerate(record["ctxs"]):
        if "hasanswer" not in passage:
            raise UserError(f"question {record.get('id')!r}: ctxs[{rank}] lacks 'hasanswer'; retrieval writes it")
        if passage["hasanswer"]:
            return rank
    return None
