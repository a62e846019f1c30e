"""Keeps the questions whose best passage by gain really makes the LLM answer correctly (paper section 3.2).

Answers afresh from the lowest-PPL_CD passage of every question and keeps those answered correctly by the task's metric
(containment; accuracy for ARC_Challenge and PubHealth). Predictions are kept in OUT.predictions.jsonl, so that an
interrupted run resumes. Where construct_hf stored predictions for all passages, data/data_filter.py does the same from
those without an LLM.

A small LLM answers wrongly from good passages too, and many of the questions left are those that it knows by itself: a
selector trained on these alone trusts the LLM's own passage too often. `--keep answerable` keeps the others as well.

    python -m gainRAG.llm_supervision.filtering --data_path gains.jsonl --output_path kept.jsonl --task HotpotQA \\
        --lm_type Llama-3-8B-Instruct
"""

import argparse
import logging
from collections import Counter
from functools import partial
from pathlib import Path

from gainRAG.common.cli import (
    UserError,
    add_overwrite_argument,
    input_file,
    keep_apart,
    positive_int,
    run_stage,
    say_next,
    stage_parser,
)
from gainRAG.common.jsonl import Record, output_file, read_records, write_records
from gainRAG.common.parallel import map_chunks
from gainRAG.common.resume import StageOutput
from gainRAG.common.schemas import as_supervised
from gainRAG.common.settings import stage_settings
from gainRAG.evaluation.gains import (
    FilterOptions,
    add_filter_arguments,
    describe_kept,
    filter_options,
    keep_answered,
    warn_of_other_gains,
)
from gainRAG.llm_inference.engine import (
    EngineOptions,
    GenerationOptions,
    Writer,
    add_engine_arguments,
    check_engine,
    engine_options,
    generation_options,
    generation_settings,
)
from gainRAG.llm_inference.lengths import LengthCheck, add_length_arguments
from gainRAG.llm_inference.predict import predict
from gainRAG.prompts import load_prompts

logger = logging.getLogger(__name__)

CHUNK = 512  # questions


def parse_arguments() -> argparse.Namespace:
    """The flags, checked as far as no model is needed."""
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", required=True, help="supervision records, with PPL_CD")
    parser.add_argument("--output_path", required=True, help="the records kept, .jsonl or .json")
    parser.add_argument("--task", required=True, help="whose prompt to use, e.g. HotpotQA, WebQuestions, NaturalQA")
    add_filter_arguments(parser)
    parser.add_argument("--max_new_tokens", type=positive_int, default=32, help="longest prediction, in tokens")
    add_length_arguments(parser)
    add_overwrite_argument(parser)
    add_engine_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    input_file(args.data_path)
    engine, generation = engine_options(**vars(args)), generation_options(**vars(args))
    options = filter_options(**vars(args))
    output_file(args.output_path)
    check_engine(engine)
    check_keep(options, generation)
    lengths = LengthCheck(engine, generation, args.max_new_tokens, args.skip_too_long)
    read = partial(read_records, args.data_path, lambda record: lengths(as_supervised(record, options.signal)))
    total = sum(1 for _ in read())
    lengths.report(total)
    keep_apart(args.output_path, args.data_path)
    predictions = Path(args.output_path).with_suffix(".predictions.jsonl")
    # What decides the predictions; which of them are kept is decided afresh in every run.
    flags = {"signal": options.signal, "no_pseudo": options.no_pseudo, "skip_too_long": args.skip_too_long}
    flags |= {**generation_settings(engine, generation), "max_new_tokens": args.max_new_tokens}
    settings = stage_settings("filtering", {"data_path": args.data_path}, **flags)
    warn_of_other_gains(args.data_path, flags)
    with StageOutput(predictions, settings, args.overwrite) as output:
        chunks = output.remaining(read(), CHUNK, "answering", total)
        for answered in map_chunks(partial(BestPassageReader, options, engine, generation), chunks):
            output.append(answered)
    counts = Counter()
    write_records(args.output_path, keep_answered(read_records(predictions), options, counts))
    logger.info("%s: %s", args.output_path, describe_kept(counts))
    say_next("questions kept", args.output_path, f"python data/data2selector.py --data_path {args.output_path}")


def check_keep(options: FilterOptions, generation: GenerationOptions) -> None:
    """Refuses `--keep answerable` where it means nothing, and `--keep holds`, which needs no LLM.

    Raises:
        UserError: so it is. Of a task judged by accuracy, that a passage holds "A" or "true" says nothing.
    """
    if not options.needs_answers:
        raise UserError("--keep holds: needs no answers; data/data_filter.py keeps these questions without an LLM")
    if options.keep == "answerable" and load_prompts(generation.prompts).task(generation.task).metric == "accuracy":
        raise UserError(
            f"--keep answerable: answers of {generation.task} are options, which a passage does not hold; "
            "wanted --keep answered"
        )


class BestPassageReader(Writer):
    """A worker (common.parallel): answers each question from its best passage."""

    def __init__(self, options: FilterOptions, engine: EngineOptions, generation: GenerationOptions) -> None:
        super().__init__(engine, generation)
        self.options = options

    def __call__(self, chunk: list[Record]) -> list[Record]:
        cases = [(record, self.options.best_passage(record)) for record in chunk]
        answerable = [(record, best) for record, best in cases if best]
        predict(self.engine, self.builder, answerable, self.max_new_tokens)
        return chunk


if __name__ == "__main__":
    run_stage(main)
