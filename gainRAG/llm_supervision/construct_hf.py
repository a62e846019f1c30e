"""The gain of every candidate passage: how much it helps the LLM produce the gold answer.

For each question the LLM writes a pseudo-passage and answers from every candidate; then the same LLM scores the gold
answers with and without each candidate (PPL_CD, retrieved_ppl: lower is better). Reads retrieval output, writes
supervision records. What the LLM wrote is kept in OUT.generated.jsonl until the gains are complete. A stopped run
resumes with the same command.

    python -m gainRAG.llm_supervision.construct_hf --data_path retrieved.jsonl --output_path gains.jsonl \\
        --task HotpotQA --lm_type Llama-3-8B-Instruct --alpha 0.5
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from gainRAG.common.cli import input_file, keep_apart, non_negative_float, run_stage, say_next, stage_parser
from gainRAG.common.jsonl import Record, read_records
from gainRAG.common.models import DTYPES, dtype_name, pick_device, pick_dtype, weights_path
from gainRAG.common.parallel import add_worker_arguments, map_chunks, worker_options
from gainRAG.common.resume import StageOutput, again, remove_output
from gainRAG.common.settings import identity
from gainRAG.llm_inference.engine import (
    EngineOptions,
    GenerationOptions,
    check_engine,
    context_length,
    engine_options,
    generation_options,
    prompt_builder,
    writing_workers,
)
from gainRAG.llm_supervision.candidates import (
    CHUNK,
    CandidateOptions,
    CandidateWriter,
    add_candidate_arguments,
    candidate_options,
    candidate_settings,
    count_questions,
    filter_command,
    length_check,
    read_candidates,
)


def parse_arguments() -> argparse.Namespace:
    """The flags, checked as far as no model is needed."""
    parser = stage_parser(__doc__)
    add_candidate_arguments(parser)
    add_worker_arguments(parser)
    parser.add_argument("--alpha", type=non_negative_float, default=0.5, help="contrast; 0 is plain perplexity")
    parser.add_argument(
        "--gain_dtype",
        choices=("auto", *DTYPES),
        default="float32",  # the signal's precision in the public code
        help="number format of the LLM's weights while it scores the gold answers (--dtype: while it writes)",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    workers, options = worker_options(**vars(args)), candidate_options(**vars(args))
    engine, generation = engine_options(**vars(args)), generation_options(**vars(args))
    keep_apart(args.output_path, input_file(args.data_path), args.background_path)
    check_engine(engine)
    # The LLM that scores the gold answers runs here, even where a server writes the texts.
    scorer = replace(engine, dtype=args.gain_dtype, backend="hf" if engine.backend == "openai" else engine.backend)
    lengths = length_check(options, scorer, generation)
    text_settings = candidate_settings("construct_hf, what the LLM writes", options, engine, generation)
    settings = candidate_settings(
        "construct_hf", options, engine, generation, alpha=args.alpha, **scorer_settings(scorer)
    )
    total = count_questions(options, lengths)
    generated = Path(args.output_path).with_suffix(".generated.jsonl")
    with StageOutput(args.output_path, settings, args.overwrite) as output:
        if not output.complete:
            with StageOutput(generated, text_settings, again(args.overwrite, output)) as texts:
                chunks = texts.remaining(read_candidates(options, lengths), CHUNK, "writing", total)
                if options.written_here:
                    writer = partial(CandidateWriter, options, engine, generation)
                    chunks = map_chunks(writer, chunks, writing_workers(engine, workers))
                for written in chunks:
                    texts.append(written)
            chunks = output.remaining(read_records(generated), CHUNK, "gains", total)
            for scored in map_chunks(partial(GainWorker, options, scorer, generation, args.alpha), chunks, workers):
                output.append(scored)
    if not output.unfinished.exists():  # left by a run with other settings, which resumes from these texts
        remove_output(generated)  # all of it is in the finished file
    say_next("gains", args.output_path, f"{filter_command(options)} --data_path {args.output_path}")


def scorer_settings(scorer: EngineOptions) -> Record:
    """What decides the gains beside the texts."""
    dtype = dtype_name(pick_dtype(scorer.dtype, pick_device(scorer.device)))
    return {"weights": identity(weights_path(scorer.lm_type)), "gain_dtype": dtype}


class GainWorker:
    """A worker (common.parallel), second pass: adds PPL_CD and retrieved_ppl of every candidate, by `GainScorer`."""

    def __init__(
        self, options: CandidateOptions, scorer: EngineOptions, generation: GenerationOptions, alpha: float
    ) -> None:
        from gainRAG.llm_inference.inference_hf import load_causal_lm, load_tokenizer
        from gainRAG.llm_supervision.gain import GainScorer

        tokenizer = load_tokenizer(scorer.lm_type)
        model = load_causal_lm(scorer.lm_type, pick_device(scorer.device), scorer.dtype)
        self.builder = prompt_builder(scorer, generation, tokenizer, context_length(scorer), options.reserved_tokens)
        self.scorer = GainScorer(model, tokenizer, alpha, scorer.max_batch_tokens, generation.chat)

    def __call__(self, chunk: list[Record]) -> list[Record]:
        from gainRAG.llm_supervision.gain import GainRequest

        requests = [
            GainRequest(
                question_prompt=self.builder.without_passage(record),
                passage_prompts=[self.builder.with_passages(record, [passage]) for passage in record["passages"]],
                answers=record["answers"],
            )
            for record in chunk
        ]
        for record, gains in zip(chunk, self.scorer.score(requests), strict=True):
            for passage, gain in zip(record["passages"], gains, strict=True):
                passage["PPL_CD"], passage["retrieved_ppl"] = gain.ppl_cd, gain.ppl
        return chunk

    def close(self) -> None:
        self.builder.report_cuts()


if __name__ == "__main__":
    run_stage(main)
