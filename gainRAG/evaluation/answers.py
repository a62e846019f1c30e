"""Metrics on strings: how right a predicted answer is, given the gold answers. No model, no task, no file.

Normalisation and token F1 are SQuAD's (Rajpurkar et al., 2016). `cover_exact_match` is what the GainRAG paper's
tables call EM. Every metric takes its best value over the gold answers; a gold answer is always literal text,
never a pattern.
"""

import re
import string
from collections import Counter
from collections.abc import Container, Sequence

METRICS = ("cover_em", "cover_em_bounded", "em", "f1")
OPTION_LETTERS = ("A", "B", "C", "D", "E")

# What opens and closes a thought, in the spelling of each family of models.
THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis", "<|channel|>final<|message|>"),
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_AFTER_ARTICLE = r"(?!\s+(?!is\b|because\b|and\b|or\b)[a-z])"  # "A plant": an article, unlike "A is right"
_BEHIND_ANSWER = r"(?i:\b(?:answer|option|choice|verdict)\b)\W+(?:[\w'’]+\W+){0,3}?"
_OPENING = r"\A\W*"
_SET_OFF = r"(?=\s*(?:[^\w\s]|\n|\Z))"
_BEHIND_IS = r"(?i:\b(?:is|are|was|were|be)(?:n['’]t)?\b)\W+(?:[\w'’]+\W+){0,2}?"
_CLAUSE_END = re.compile(r"[.,;:!?()\n]|\b(?:but|although|though|because|and|so)\b", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not|never|cannot|neither|nor|rather than|instead of)\b|n['’]t\b", re.IGNORECASE)
_UNDECIDED = re.compile(r"\b(?:whether|if)\b", re.IGNORECASE)


def without_thoughts(text: str, thinking: bool = False) -> tuple[str, bool]:
    """What follows the last thought of a text, and whether a thought never ends, which leaves an empty text.

    Args:
        thinking: the prompt opened a thought already, as some chat templates do.
    """
    for opening, closing in THOUGHTS:
        _, ended, after = text.rpartition(closing)
        if ended:
            text, thinking = after, False
        thinking = thinking or opening in text
    return ("", True) if thinking else (text.strip(), False)


def normalize_answer(text: str) -> str:
    """Lower case without ASCII punctuation and the words a, an, the; runs of white space become one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def cover_exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a normalised gold answer is a substring of the normalised prediction: the paper's "EM".

    Kept as published, with its two weaknesses: it finds "no" inside "know", and a gold answer that normalises to
    nothing ("The", "!!!") is inside every prediction. Such gold answers are reported, not refused: results files name
    them (`suspect_answers`). `cover_exact_match_bounded` has neither weakness, `is_correct` not the second.
    """
    predicted = normalize_answer(prediction)
    return any(normalize_answer(answer) in predicted for answer in _listed(answers))


def cover_exact_match_bounded(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the tokens of a normalised gold answer are consecutive in the normalised prediction.

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
    """Whether the option that the prediction settles on is a gold answer (multiple choice, claim checking).

    The first of these rules that finds an option decides:

    1. the whole prediction is an option, in any case: "B", "(b)", "True.";
    2. the last option behind the word answer, option, choice or verdict: "The answer is B.";
    3. an option that opens the prediction, set off by punctuation: "False, because ...", "(B) gravity";
    4. the last option behind is, are, was, were or be: "The claim is not true, it is false";
    5. the last option named at all: "A plant needs light: D".

    In rules 2, 4 and 5 an option behind "whether" or "if", or behind a negation in its clause, is none; but of two
    options the negation of one is the other: "That is not true" is false. A letter inside a sentence counts as an
    upper-case letter only, and "A" not as an article.

    Args:
        answers: gold options, as "B" or "true".
        choices: the options' labels; none given means true and false if a gold answer is one of them, else A to E.
    """
    golds = {answer.strip().lower() for answer in _listed(answers)}
    if not choices:
        choices = ("true", "false") if golds & {"true", "false"} else OPTION_LETTERS
    verdict = _verdict(prediction, choices)
    return verdict is not None and verdict.lower() in golds


def _verdict(prediction: str, choices: Sequence[str]) -> str | None:
    alone = prediction.strip().strip(string.punctuation).strip().lower()
    for choice in choices:
        if choice.lower() == alone:
            return choice
    options = "|".join(map(_option_pattern, choices))
    option = rf"(?<!\w)(?<!\w['’])(?P<option>{options})(?!['’]?\w)"
    for place in (_BEHIND_ANSWER, _OPENING, _BEHIND_IS, ""):
        pattern = rf"{place}{option}" + (_SET_OFF if place == _OPENING else "")
        named = [_meant(prediction, found, choices) for found in re.finditer(pattern, prediction)]
        if verdicts := [choice for choice in named if choice]:
            return verdicts[-1]
    return None


def _meant(prediction: str, found: re.Match, choices: Sequence[str]) -> str | None:
    """The option that a place in the text speaks for: the one named there, the other one of two, or none."""
    clause = _CLAUSE_END.split(prediction[: found.start("option")])[-1]
    if _UNDECIDED.search(clause):
        return None
    if not _NEGATION.search(clause):
        return found["option"]
    others = [choice for choice in choices if choice.lower() != found["option"].lower()]
    return others[0] if len(choices) == 2 and others else None


def _option_pattern(choice: str) -> str:
    literal = re.escape(choice)
    if len(choice) > 1:
        return f"(?i:{literal})"
    return literal + (_AFTER_ARTICLE if choice == "A" else "")


def is_correct(prediction: str, answers: Sequence[str], metric: str, choices: Sequence[str] | None = None) -> bool:
    """Whether a prediction is right by its task's own metric.

    Args:
        metric: a task's (`prompts.Task.metric`). `answers`: a gold answer is contained, as in `cover_exact_match`, but
            one that normalises to nothing ("The", "!!!") only in a prediction that does so too. `accuracy`: see there.
        choices: the options' labels, for `accuracy`.

    Raises:
        ValueError: no such metric.
    """
    prediction, _ = without_thoughts(prediction)
    if metric == "accuracy":
        return accuracy(prediction, answers, choices)
    if metric != "answers":
        raise ValueError(f"{metric}: wanted the metric answers or accuracy")
    golds = [answer for answer in _listed(answers) if normalize_answer(answer) or not normalize_answer(prediction)]
    return cover_exact_match(prediction, golds)


def main_metric(scores: Container[str]) -> str:
    """The metric that decides whether an answer is right, among those measured: the task's own accuracy if it has one,
    otherwise cover_em."""
    return "accuracy" if "accuracy" in scores else "cover_em"


def option_labels(record: dict) -> list[str] | None:
    """The labels of a question's options; None where it has none."""
    return (record.get("choices") or {}).get("label")


def score_prediction(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Every metric of METRICS for one prediction, each from 0 to 1; its thoughts are no part of the answer."""
    prediction, _ = without_thoughts(prediction)
    return {
        "cover_em": float(cover_exact_match(prediction, answers)),
        "cover_em_bounded": float(cover_exact_match_bounded(prediction, answers)),
        "em": float(exact_match(prediction, answers)),
        "f1": f1_score(prediction, answers),
    }


def suspect_answers(answers: Sequence[str]) -> list[str]:
    """The gold answers that containment matches by accident: normalised to nothing, to one character, to yes or no."""
    normalized = ((answer, normalize_answer(answer)) for answer in _listed(answers))
    return [answer for answer, text in normalized if len(text) <= 1 or text in ("yes", "no")]


def _listed(answers: Sequence[str]) -> Sequence[str]:
    return [answers] if isinstance(answers, str) else answers
