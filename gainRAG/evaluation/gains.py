"""What a perplexity is worth: the gain, the best passage by it, and which training questions the filter keeps."""

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Iterator

from gainRAG.common.jsonl import FieldError, Record
from gainRAG.common.schemas import as_supervised

SIGNALS = ("PPL_CD", "retrieved_ppl")
KEEPS = ("answered", "answerable")


def gain_of(perplexity: float) -> float:
    """-log(perplexity + 1), the teacher's score of a passage: 0 at best, lower is worse (paper section 3.2)."""
    return -math.log(perplexity + 1)


def best_passage(record: Record, signal: str = "PPL_CD") -> Record:
    """The candidate with the lowest perplexity; the first of equals."""
    return min(record["passages"], key=lambda passage: passage[signal])


def gain_among(passage: Record, candidates: Iterable[Record]) -> float | None:
    """The gain of a passage that is one of the scored candidates (by id and text); None where it is not."""
    for candidate in candidates:
        if candidate.get("id") == passage.get("id") and candidate["text"] == passage["text"]:
            return gain_of(candidate["PPL_CD"])
    return None


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that decide which questions stay."""
    parser.add_argument("--signal", choices=SIGNALS, default="PPL_CD", help="which perplexity names the best passage")
    parser.add_argument(
        "--keep",
        choices=KEEPS,
        default="answered",
        help="answered: the LLM answers correctly from the best passage (the paper's filter); answerable: also where "
        "it does not, but that passage holds a gold answer (for LLMs of a few hundred million parameters)",
    )


def as_answered(record: Record, signal: str) -> Record:
    """A supervision record whose best passage was answered from: it has `EM_with_retrieval`."""
    record = as_supervised(record, signal)
    if record["passages"]:
        best = best_passage(record, signal)
        if not isinstance(best.get("EM_with_retrieval"), int | float):
            where = f"passages[{record['passages'].index(best)}].EM_with_retrieval"
            raise FieldError(where, "missing; llm_supervision.filtering answers from the best passage afresh")
    return record


def keep_answered(records: Iterable[Record], signal: str, keep: str, counts: Counter) -> Iterator[Record]:
    """The `as_answered` records that stay by `keep` (`add_filter_arguments`); `counts` learns why the others went."""
    for record in records:
        if not record["passages"]:
            counts["without any candidate"] += 1
            continue
        best = best_passage(record, signal)
        right, holds = bool(best["EM_with_retrieval"]), bool(best.get("has_answer"))
        kept = right or (holds and keep == "answerable")
        wrong = f"answered wrongly, best passage {'holds' if holds else 'lacks'} the answer"
        counts["kept" if kept else wrong] += 1
        counts[f"kept, {wrong}"] += kept and not right
        counts["kept, best passage is the LLM's own"] += kept and bool(best.get("is_pseudo"))
        if kept:
            yield record


def describe_kept(counts: Counter) -> str:
    """One line: how many questions were kept, and why the rest went."""
    total = sum(count for reason, count in counts.items() if not reason.startswith("kept,"))
    rest = "; ".join(f"{count} {reason}" for reason, count in counts.items() if reason != "kept" and count)
    return f"kept {counts['kept']} of {total} questions" + (f" ({rest})" if rest else "")
