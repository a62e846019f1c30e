"""The gain of every candidate passage: how much it helps the LLM produce the gold answer.

For each question the LLM writes a pseudo-passage and answers from every candidate; then the same LLM scores the gold
answers with and without each candidate (PPL_CD, retrieved_ppl: lower is better). Reads retrieval output, writes
supervision records. What the LLM wrote is kept in OUT.generated.jsonl until the gains are complete. A stopped run
resumes with the same command.

    python -m gainRAG.llm_supervision.construct_hf --data_path retrieved.jsonl --output_path gains.jsonl \
        --task HotpotQA --lm_type Llama-3-8B-Instruct --alpha 0.5
"""

import argparse
import logging
from functools import partial
from pathlib import Path

from gainRAG.common.cli import non_negative_float, run_stage, stage_parser
from gainRAG.common.jsonl import Record, read_records
from gainRAG.common.models import dtype_name, longest_input, pick_device, pick_dtype, weights_path
from gainRAG.common.parallel import WorkerOptions, add_worker_arguments, map_chunks, worker_options
from gainRAG.common.resume import StageOutput, identity, remove_output
from gainRAG.llm_inference.engine import (
    EngineOptions,
    GenerationOptions,
    check_engine,
    check_tokenizer,
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
    read_candidates,
)

logger = logging.getLogger(__name__)


def parse_arguments() -> argparse.Namespace:
    """The flags, checked as far as no model is needed."""
    parser = stage_parser(__doc__)
    add_candidate_arguments(parser)
    add_worker_arguments(parser)
    parser.add_argument("--alpha", type=non_negative_float, default=0.5, help="contrast; 0 is plain perplexity")
    parser.set_defaults(dtype="float32")  # the signal's precision in the public code
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    workers, options = worker_options(args), candidate_options(args)
    engine, generation = engine_options(args), generation_options(args)
    check_engine(engine, generation)
    if engine.backend == "openai":
        check_tokenizer(engine, generation)  # the server writes the texts, the gains need the LLM here
    settings = gain_settings(options, engine, generation, args.alpha)
    total = count_questions(options)
    generated = Path(args.output_path).with_suffix(".generated.jsonl")
    with StageOutput(args.output_path, settings, args.overwrite) as output:
        if not output.complete:
            write_texts(generated, args.overwrite, options, engine, generation, workers, total)
            chunks = output.remaining(read_records(generated), CHUNK, "gains", total)
            make_scorer = partial(GainWorker, options, engine, generation, args.alpha)
            for scored in map_chunks(make_scorer, chunks, workers):
                output.append(scored)
    remove_output(generated)  # all of it is in the finished file


def gain_settings(
    options: CandidateOptions, engine: EngineOptions, generation: GenerationOptions, alpha: float
) -> Record:
    """What decides the finished output: a server may write the texts, the gains come from weights here."""
    signal = {
        "alpha": alpha,
        "weights": identity(weights_path(engine.lm_type)),
        "gain_dtype": dtype_name(pick_dtype(engine.dtype, pick_device(engine.device))),
    }
    return candidate_settings("construct_hf", options, engine, generation, **signal)


def write_texts(
    path: Path,
    overwrite: bool,
    options: CandidateOptions,
    engine: EngineOptions,
    generation: GenerationOptions,
    workers: WorkerOptions,
    total: int,
) -> None:
    """First pass: pseudo-passages, and a prediction for every candidate. The engine is gone when it returns."""
    settings = candidate_settings("construct_hf, what the LLM writes", options, engine, generation)
    with StageOutput(path, settings, overwrite) as output:
        written = output.remaining(read_candidates(options), CHUNK, "writing", total)
        if options.written_here:
            make_writer = partial(CandidateWriter, options, engine, generation)
            written = map_chunks(make_writer, written, writing_workers(engine, workers))
        for records in written:
            output.append(records)


class GainWorker:
    """A worker (common.parallel), second pass: adds PPL_CD and retrieved_ppl of every candidate, by `GainScorer`."""

    def __init__(
        self, options: CandidateOptions, engine: EngineOptions, generation: GenerationOptions, alpha: float
    ) -> None:
        from gainRAG.llm_inference.inference_hf import load_causal_lm, load_tokenizer
        from gainRAG.llm_supervision.gain import GainScorer

        tokenizer = load_tokenizer(engine.lm_type)
        model = load_causal_lm(engine.lm_type, pick_device(engine.device), engine.dtype)
        context_length = longest_input(model.config)
        self.builder = prompt_builder(engine, generation, tokenizer, context_length, options.reserved_tokens)
        self.scorer = GainScorer(model, tokenizer, alpha, engine.max_batch_tokens)

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
        if self.builder.cut:
            logger.info("%d prompts were too long for the LLM and were cut inside the passage", self.builder.cut)


if __name__ == "__main__":
    run_stage(main)
