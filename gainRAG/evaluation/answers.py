"""Metrics on strings: how right a predicted answer is, given the gold answers. No model, no task, no file.

Normalisation and token F1 are SQuAD's (Rajpurkar et al., 2016). `cover_exact_match` is what the GainRAG paper's
tables call EM. Every metric takes its best value over the gold answers; a gold answer is always literal text,
never a pattern.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

METRICS = ("cover_em", "cover_em_bounded", "em", "f1")
OPTION_LETTERS = ("A", "B", "C", "D", "E")

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_AFTER_ARTICLE = r"(?!\s+(?!is\b|because\b|and\b|or\b)[a-z])"  # "A plant": an article, unlike "A is right"


def normalize_answer(text: str) -> str:
    """Lower case without ASCII punctuation and the words a, an, the; runs of white space become one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def cover_exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a normalised gold answer is a substring of the normalised prediction: the paper's "EM".

    Kept as published, with its two weaknesses: it finds "no" inside "know", and a gold answer that normalises to
    nothing ("The", "!!!") is inside every prediction. `suspect_answers` names such gold answers, results files state
    their share, and `cover_exact_match_bounded` has neither weakness.
    """
    predicted = normalize_answer(prediction)
    return any(normalize_answer(answer) in predicted for answer in _listed(answers))


def cover_exact_match_bounded(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the tokens of a normalised gold answer stand in a row in the normalised prediction.

    A gold answer that normalises to nothing is covered only by a prediction that does so too.
    """
    predicted = normalize_answer(prediction)
    golds = map(normalize_answer, _listed(answers))
    return any(f" {gold} " in f" {predicted} " if gold else not predicted for gold in golds)


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the normalised prediction equals a normalised gold answer (SQuAD's EM)."""
    predicted = normalize_answer(prediction)
    return any(normalize_answer(answer) == predicted for answer in _listed(answers))


def f1_score(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's F1 of the tokens that prediction and gold answer share, from 0 to 1; the best gold answer counts.

    Where either side has no tokens, F1 is 1 if both have none and 0 otherwise.
    """
    predicted = normalize_answer(prediction).split()
    return max((_token_f1(predicted, normalize_answer(answer).split()) for answer in _listed(answers)), default=0.0)


def _token_f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    shared = (Counter(predicted) & Counter(gold)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def accuracy(prediction: str, answers: Sequence[str], choices: Sequence[str] | None = None) -> bool:
    """Whether the first option that the prediction names is a gold answer (multiple choice, claim checking).

    Args:
        prediction: "B", "(B) gravity", "The answer is B." or "False, because ..." all name an option; a lower-case
            letter does so only when it is the whole prediction, since "a" is also an article.
        answers: gold options, as "B" or "true".
        choices: the options' labels; none given means true and false if a gold answer is one of them, else A to E.
    """
    golds = {answer.strip().lower() for answer in _listed(answers)}
    if not choices:
        choices = ("true", "false") if golds & {"true", "false"} else OPTION_LETTERS
    named = _first_named(prediction, choices)
    return named is not None and named.lower() in golds


def _first_named(prediction: str, choices: Sequence[str]) -> str | None:
    alone = prediction.strip().strip(string.punctuation).strip().lower()
    for choice in choices:
        if choice.lower() == alone:
            return choice
    found = re.search(rf"(?<!\w)(?<!\w['’])(?:{'|'.join(map(_option_pattern, choices))})(?!['’]?\w)", prediction)
    return found and found[0]


def _option_pattern(choice: str) -> str:
    literal = re.escape(choice)
    if len(choice) > 1:
        return f"(?i:{literal})"
    return literal + (_AFTER_ARTICLE if choice == "A" else "")


def score_prediction(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Every metric of METRICS for one prediction, each from 0 to 1."""
    return {
        "cover_em": float(cover_exact_match(prediction, answers)),
        "cover_em_bounded": float(cover_exact_match_bounded(prediction, answers)),
        "em": float(exact_match(prediction, answers)),
        "f1": f1_score(prediction, answers),
    }


def suspect_answers(answers: Sequence[str]) -> list[str]:
    """The gold answers that containment matches by accident: normalised to nothing, to one character, to yes or no."""
    return [answer for answer in _listed(answers) if _is_suspect(normalize_answer(answer))]


def _is_suspect(normalized: str) -> bool:
    return len(normalized) <= 1 or normalized in ("yes", "no")


def _listed(answers: Sequence[str]) -> Sequence[str]:
    return [answers] if isinstance(answers, str) else answers
