"""Answers of an LLM from given passages, scored against the gold answers."""

from collections.abc import Sequence

from gainRAG.common.jsonl import Record
from gainRAG.evaluation.answers import cover_exact_match, f1_score
from gainRAG.evaluation.recall import AnswerMatcher
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.llm_inference.engine import Engine


def candidate(passage: Record, matcher: AnswerMatcher) -> Record:
    """A retrieved or written passage as a supervision record names its fields."""
    hit = passage.get("hasanswer")
    return {
        "id": passage.get("id"),
        "title": passage.get("title") or "",
        "text": passage["text"],
        "has_answer": matcher.matches(passage["text"]) if hit is None else hit,
        "retrieval_score": passage.get("score"),
        "is_pseudo": passage.get("is_pseudo", False),
    }


def predict(
    engine: Engine, builder: PromptBuilder, cases: Sequence[tuple[Record, Record]], max_new_tokens: int
) -> None:
    """Answers each question from one passage, and notes with the passage `prediction`, `EM_with_retrieval`
    (containment) and `F1_with_retrieval`.

    Args:
        cases: (question, passage) pairs.
    """
    prompts = [builder.with_passages(record, [passage]) for record, passage in cases]
    for (record, passage), text in zip(cases, engine.generate(prompts, max_new_tokens), strict=True):
        passage["prediction"] = text
        passage["EM_with_retrieval"] = float(cover_exact_match(text, record["answers"]))
        passage["F1_with_retrieval"] = f1_score(text, record["answers"])
