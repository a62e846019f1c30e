"""The report's table of questions: what the page's script shows, filters and searches, as JSON values."""

import math
from collections.abc import Sequence

from gainRAG.analysis.figures import printable
from gainRAG.analysis.measures import BASE, OURS, best_first, label, origin
from gainRAG.analysis.runs import QuestionSet, passage_key
from gainRAG.common.jsonl import Record
from gainRAG.common.schemas import is_number

LONGEST = 600  # characters shown of a text
CANDIDATES = 30  # shown of a question; picks are always among them
VERDICTS = {
    (False, True): "helped",
    (True, False): "hurt",
    (True, True): "both right",
    (False, False): "both wrong",
}


def question_table(sets: Sequence[QuestionSet], limit: int) -> Record:
    """At most `limit` questions, those on which GainRAG and standard RAG differ first.

    Returns:
        `sets`, `methods` (key and label, GainRAG and standard RAG first), `total`, and `questions`: each with `set`,
        `question`, `answers`, `verdict` (GainRAG against standard RAG: helped, hurt, both right, both wrong, or None),
        `pseudo` (picked by GainRAG), `said` (by method: `text`, `right`, `pick`, the place of a candidate) and
        `candidates` (`title`, `text`, `from`, `gain`, `score`).
    """
    everything = [(verdict(found, question), found, question) for found in sets for question in found.questions]
    everything.sort(key=lambda one: one[0] not in ("helped", "hurt"))
    methods = dict.fromkeys([OURS, BASE, *(method for found in sets for method in best_first(found))])
    there = [method for method in methods if any(method in found.results for found in sets)]
    return {
        "sets": [printable(found.name) for found in sets],
        "methods": [[method, printable(label(method))] for method in there],
        "total": len(everything),
        "questions": [
            {"set": sets.index(found), "verdict": what, **_row(found, question)}
            for what, found, question in everything[:limit]
        ],
    }


def verdict(found: QuestionSet, question: Record) -> str | None:
    """What GainRAG changed against standard RAG; None where one of them was not run."""
    if BASE not in found.predictions or OURS not in found.predictions:
        return None
    return VERDICTS[is_right(found, BASE, question), is_right(found, OURS, question)]


def is_right(found: QuestionSet, method: str, question: Record) -> bool:
    """Whether a method's answer is right by the task's own metric."""
    return found.predictions[method][str(question.get("id"))].get(found.metric) == 1


def _row(found: QuestionSet, question: Record) -> Record:
    name = str(question.get("id"))
    picks = {method: pick for method in found.results if (pick := found.pick_of(method, question))}
    passages = {passage_key(one): one for one in (*picks.values(), *found.picks.candidates.get(name, []))}
    ranks = found.ranks.get(name, {})
    shown = sorted(list(passages)[: max(CANDIDATES, len(picks))], key=lambda key: ranks.get(key, math.inf))
    return {
        "question": clip(question["question"]),
        "answers": [clip(str(answer)) for answer in question["answers"][:20]],
        "pseudo": bool(picks.get(OURS, {}).get("is_pseudo")),
        "said": {
            method: {
                "text": clip(found.predictions[method][name]["prediction"]),
                "right": is_right(found, method, question),
                "pick": shown.index(passage_key(picks[method])) if method in picks else None,
            }
            for method in found.results
        },
        "candidates": [_candidate(found, question, passages[key]) for key in shown],
        "more": len(passages) - len(shown),
    }


def _candidate(found: QuestionSet, question: Record, passage: Record) -> Record:
    name, key = str(question.get("id")), passage_key(passage)
    score = found.scored.get("trained", {}).get(name, {}).get(key)
    if score is None and is_number(passage.get("selector_score")) and passage is found.pick_of(OURS, question):
        score = passage["selector_score"]
    rank = found.ranks.get(name, {}).get(key)
    return {
        "title": clip(passage.get("title") or ""),
        "text": clip(passage["text"]),
        "from": str(rank) if rank else origin(found, question, passage),
        "gain": found.picks.gain_for(question, passage),
        "score": score,
    }


def clip(text: str) -> str:
    """The text, or its beginning and how long it is."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [... {len(text):,} characters in all]"
