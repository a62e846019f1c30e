"""What a perplexity is worth: the gain, the best passage by it, and which training questions the filter keeps."""

import argparse
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import FieldError, Record
from gainRAG.common.schemas import as_supervised
from gainRAG.common.settings import read_settings
from gainRAG.evaluation.recall import AnswerMatcher, is_hit, match_rule

logger = logging.getLogger(__name__)

SIGNALS = ("PPL_CD", "retrieved_ppl")
KEEPS = ("answered", "answerable", "holds")
LARGEST_NLL = 700.0  # nats; its exponential still is a finite float64, which JSON can hold


def perplexity_of(nll: float) -> float:
    """exp(nll), of a mean negative log-likelihood in nats; cut so that JSON can hold it.

    Raises:
        UserError: it is not a number, so the LLM overflowed.
    """
    if math.isnan(nll):
        raise UserError(
            "the LLM's scores of a gold answer are not numbers: its number format overflows; give a wider one, "
            "--gain_dtype float32 or bfloat16 (construct_vllm: --dtype), and --overwrite changed, which keeps texts"
        )
    return math.exp(min(nll, LARGEST_NLL))


def gain_of(perplexity: float) -> float:
    """-log(perplexity + 1), the teacher's score of a passage: -0.69 at best, lower is worse (paper section 3.2)."""
    return -math.log(perplexity + 1)


def warn_of_other_gains(path: str | Path, flags: Mapping[str, Any]) -> None:
    """Says so where the settings beside a file of gains name another LLM, task or prompts than this run has.

    Args:
        flags: the run's own, those of `engine.generation_settings`; without `weights` where a server runs the LLM.
    """
    former = (read_settings(Path(path)) or {}).get("flags", {})
    for name, what in {"weights": "another LLM", "task": "another task", "prompts": "other prompts"}.items():
        if name in flags and former.get(name) not in (None, flags[name]):
            logger.warning("%s: gains of %s than this run has (%s then, %s now)", path, what, former[name], flags[name])


@dataclass(frozen=True)
class FilterOptions:
    """Which questions stay; the flags of `add_filter_arguments` under the same names."""

    signal: str = "PPL_CD"
    keep: str = "answered"
    no_pseudo: bool = False

    @property
    def needs_answers(self) -> bool:
        """Whether what the LLM answers counts."""
        return self.keep != "holds"

    def best_passage(self, record: Record) -> Record | None:
        """The candidate that decides whether the question stays, that with the lowest perplexity, the first of equals;
        None where there is none."""
        candidates = [passage for passage in record["passages"] if not (self.no_pseudo and passage.get("is_pseudo"))]
        return min(candidates, key=lambda passage: passage[self.signal], default=None)


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that decide which questions stay."""
    parser.add_argument("--signal", choices=SIGNALS, default="PPL_CD", help="which perplexity names the best passage")
    parser.add_argument(
        "--keep",
        choices=KEEPS,
        default="answered",
        help="answered: the LLM answers correctly from the best passage (the paper's filter); answerable: also where "
        "it does not, but that passage holds a gold answer (for LLMs of a few hundred million parameters); holds: "
        "where that passage holds one, whatever the LLM answers (nothing need be answered)",
    )
    parser.add_argument("--no_pseudo", action="store_true", help="the LLM's own passage does not count as the best one")


def filter_options(*, signal: str, keep: str, no_pseudo: bool, **_) -> FilterOptions:
    """From the parsed flags (`**vars(args)`) those of `add_filter_arguments`."""
    return FilterOptions(signal, keep, no_pseudo)


def as_answered(record: Record, options: FilterOptions) -> Record:
    """A supervision record whose best passage was answered from, where the filter asks: it has `EM_with_retrieval`."""
    record = as_supervised(record, options.signal)
    best = options.best_passage(record)
    if best and options.needs_answers and not isinstance(best.get("EM_with_retrieval"), int | float):
        where = f"passages[{record['passages'].index(best)}].EM_with_retrieval"
        raise FieldError(where, "missing; llm_supervision.filtering answers from the best passage afresh")
    return record


def keep_answered(records: Iterable[Record], options: FilterOptions, counts: Counter) -> Iterator[Record]:
    """The `as_answered` records that stay; `counts` learns why the others went.

    That a passage holds the letter of an option, as "a", says nothing: a question with `choices` stays only where it
    is answered correctly.
    """
    for record in records:
        best = options.best_passage(record)
        if best is None:
            counts["without any candidate"] += 1
            continue
        matcher = AnswerMatcher(record["answers"], match_rule(record))
        holds = is_hit(best, matcher, "has_answer") and not record.get("choices")
        right = options.needs_answers and bool(best["EM_with_retrieval"])
        kept = right or (holds and options.keep != "answered")
        wrong = "answered wrongly, " if options.needs_answers else ""
        reason = f"{wrong}best passage {'holds' if holds else 'lacks'} the answer"
        counts["kept" if kept else reason] += 1
        if wrong:
            counts[f"kept, {reason}"] += kept and not right
        counts["kept, best passage is the LLM's own"] += kept and bool(best.get("is_pseudo"))
        if kept:
            yield record


def describe_kept(counts: Counter) -> str:
    """One line: how many questions were kept, and why the rest went."""
    total = sum(count for reason, count in counts.items() if not reason.startswith("kept,"))
    rest = "; ".join(f"{count} {reason}" for reason, count in counts.items() if reason != "kept" and count)
    advice = "" if counts["kept"] else "; --keep answerable and --keep holds keep more"
    return f"kept {counts['kept']} of {total} questions" + (f" ({rest})" if rest else "") + advice
