"""Answers of an LLM from given passages, scored against the gold answers."""

from collections.abc import Sequence

from gainRAG.common.jsonl import Record
from gainRAG.evaluation.answers import f1_score, is_correct, option_labels
from gainRAG.evaluation.recall import AnswerMatcher, is_hit
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.llm_inference.engine import Engine

# Fields of a retrieved passage that a candidate has under another name, or that are measured anew.
NOT_KEPT = {"hasanswer", "score", "prediction", "EM_with_retrieval", "F1_with_retrieval", "PPL_CD", "retrieved_ppl"}


def candidate(passage: Record, matcher: AnswerMatcher) -> Record:
    """A retrieved or written passage as a supervision record names its fields; unknown fields stay as they are."""
    named = {
        "id": passage.get("id"),
        "title": passage.get("title") or "",
        "text": passage["text"],
        "has_answer": is_hit(passage, matcher),
        "retrieval_score": passage.get("score"),
        "is_pseudo": passage.get("is_pseudo", False),
    }
    unknown = {name: value for name, value in passage.items() if name not in NOT_KEPT | named.keys()}
    return named | unknown


def predict(
    engine: Engine, builder: PromptBuilder, cases: Sequence[tuple[Record, Record]], max_new_tokens: int
) -> None:
    """Answers each question from one passage, and notes with the passage `prediction`, `EM_with_retrieval` (whether it
    is right by the task's own metric, see `answers.is_correct`) and `F1_with_retrieval`.

    Args:
        cases: (question, passage) pairs.
    """
    prompts = [builder.with_passages(record, [passage]) for record, passage in cases]
    for (record, passage), text in zip(cases, engine.generate(prompts, max_new_tokens), strict=True):
        right = is_correct(text, record["answers"], builder.task.metric, option_labels(record))
        passage["prediction"] = text
        passage["EM_with_retrieval"] = float(right)
        passage["F1_with_retrieval"] = f1_score(text, record["answers"])
