"""Keeps the questions whose best passage by gain really makes the LLM answer correctly (paper section 3.2).

Answers afresh from the lowest-PPL_CD passage of every question and keeps those answered correctly (containment).
Predictions stand in OUT.predictions.jsonl, so that an interrupted run goes on. Where construct_hf stored predictions
for all passages, data/data_filter.py does the same from those without an LLM.

A small LLM answers wrongly from good passages too, and many of the questions left are those that it knows by itself: a
selector trained on these alone trusts the LLM's own passage too often. `--keep answerable` keeps the others as well.

    python -m gainRAG.llm_supervision.filtering --data_path gains.jsonl --output_path kept.jsonl --task HotpotQA \
        --lm_type Llama-3-8B-Instruct
"""

import argparse
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from gainRAG.common.cli import positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import FieldError, Record, output_file, read_records, write_records
from gainRAG.common.resume import StageOutput, stage_settings, write_in_chunks
from gainRAG.common.schemas import as_supervised
from gainRAG.llm_inference.engine import (
    add_engine_arguments,
    check_engine_arguments,
    generation_settings,
    load_engine,
    prompt_builder,
)
from gainRAG.llm_supervision.construct_hf import predict

logger = logging.getLogger(__name__)

CHUNK = 512  # questions
SIGNALS = ("PPL_CD", "retrieved_ppl")
KEEPS = ("answered", "answerable")


def best_passage(record: Record, signal: str = "PPL_CD") -> Record:
    """The candidate with the lowest perplexity; the first of equals."""
    return min(record["passages"], key=lambda passage: passage[signal])


def as_answered(record: Record, signal: str) -> Record:
    """A supervision record whose best passage was answered from: it has `EM_with_retrieval`."""
    record = as_supervised(record, signal)
    if record["passages"]:
        best = best_passage(record, signal)
        if not isinstance(best.get("EM_with_retrieval"), int | float):
            where = f"passages[{record['passages'].index(best)}].EM_with_retrieval"
            raise FieldError(where, "missing; llm_supervision.filtering answers from the best passage afresh")
    return record


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Which questions stay."""
    parser.add_argument("--signal", choices=SIGNALS, default="PPL_CD", help="which perplexity names the best passage")
    parser.add_argument(
        "--keep",
        choices=KEEPS,
        default="answered",
        help="answered: the LLM answers correctly from the best passage (the paper's filter); answerable: also where "
        "it does not, but that passage holds a gold answer (for LLMs of a few hundred million parameters)",
    )


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


def report(counts: Counter) -> str:
    """One line: how many were kept, and why the rest went."""
    total = sum(count for reason, count in counts.items() if not reason.startswith("kept,"))
    rest = "; ".join(f"{count} {reason}" for reason, count in counts.items() if reason != "kept" and count)
    return f"kept {counts['kept']} of {total} questions" + (f" ({rest})" if rest else "")


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", required=True, help="supervision records, with PPL_CD")
    parser.add_argument("--output_path", required=True, help="the records kept, .jsonl or .json")
    parser.add_argument("--task", required=True, help="whose prompt to use, e.g. HotpotQA, WebQuestions, NaturalQA")
    add_filter_arguments(parser)
    parser.add_argument("--max_new_tokens", type=positive_int, default=32, help="longest prediction, in tokens")
    parser.add_argument("--overwrite", action="store_true", help="start afresh, whatever stands there")
    add_engine_arguments(parser)
    args = parser.parse_args()
    output_file(args.output_path)
    check_engine_arguments(args)
    supervised = partial(as_supervised, signal=args.signal)
    total = sum(1 for _ in read_records(args.data_path, supervised))
    settings = stage_settings(
        "filtering",
        {"data_path": args.data_path},
        **generation_settings(args),
        signal=args.signal,
        max_new_tokens=args.max_new_tokens,
    )
    predictions = Path(args.output_path).with_suffix(".predictions.jsonl")
    with StageOutput(predictions, settings, args.overwrite) as writer:
        if not writer.complete:
            engine = load_engine(args)
            builder = prompt_builder(args, engine.tokenizer, engine.context_length, args.max_new_tokens)

            def work(chunk: list[Record]) -> list[Record]:
                asked = [record for record in chunk if record["passages"]]
                cases = [(record, best_passage(record, args.signal)) for record in asked]
                predict(engine, builder, cases, args.max_new_tokens)
                return chunk

            records = read_records(args.data_path, supervised)
            write_in_chunks(writer, records, CHUNK, partial(map, work), "answering", total)
            engine.close()
    counts: Counter = Counter()
    write_records(args.output_path, keep_answered(read_records(predictions), args.signal, args.keep, counts))
    logger.info("%s: %s", args.output_path, report(counts))


if __name__ == "__main__":
    run_stage(main)
