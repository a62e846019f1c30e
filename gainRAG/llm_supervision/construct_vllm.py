"""The plain perplexity of every candidate passage by vLLM alone: `retrieved_ppl` without the contrast.

For those who want only that: the contrastive PPL_CD needs logits over the whole vocabulary, which vLLM does not give,
so records made here train with `--signal retrieved_ppl`. Input, flags and records are construct_hf's, without alpha
and PPL_CD. The LLM works in `--dtype auto` unless told otherwise. A run that was stopped goes on with the same command.

    python -m gainRAG.llm_supervision.construct_vllm --data_path retrieved.jsonl --output_path ppl.jsonl \
        --task HotpotQA --lm_type Llama-3-8B-Instruct
"""

import logging
import math
from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from gainRAG.common.cli import run_stage, stage_parser
from gainRAG.common.jsonl import Record
from gainRAG.common.resume import StageOutput, write_in_chunks
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.llm_inference.engine import check_engine_arguments, load_engine, prompt_builder
from gainRAG.llm_supervision.construct_hf import (
    CHUNK,
    add_construct_arguments,
    add_predictions,
    add_pseudo_passages,
    check_input,
    questions_of,
    room,
    settings,
)

if TYPE_CHECKING:
    from gainRAG.llm_inference.inference_vllm import VLLMEngine

logger = logging.getLogger(__name__)


def add_perplexities(engine: "VLLMEngine", builder: PromptBuilder, chunk: Sequence[Record]) -> None:
    """Writes `retrieved_ppl` to every candidate: the lowest perplexity over the gold answers.

    Prompt and answer are tokenised apart and their ids joined, as in construct_hf.
    """
    candidates = []
    for record in chunk:
        prompts = _token_ids(engine, [builder.with_passages(record, [passage]) for passage in record["passages"]])
        answers = _token_ids(engine, list(dict.fromkeys(record["answers"])))
        candidates += [(passage, prompt, answers) for passage, prompt in zip(record["passages"], prompts, strict=True)]
    cases = [(prompt, answer) for _, prompt, answers in candidates for answer in answers]
    found = iter(engine.answer_log_probabilities(cases))
    for passage, _, answers in candidates:
        passage["retrieved_ppl"] = min(math.exp(-fmean(next(found))) for _ in answers)


def _token_ids(engine: "VLLMEngine", texts: list[str]) -> list[list[int]]:
    return engine.tokenizer(texts, add_special_tokens=False).input_ids if texts else []


def main() -> None:
    parser = stage_parser(__doc__)
    add_construct_arguments(parser, backends=("vllm",))
    args = parser.parse_args()
    check_engine_arguments(args)
    total = check_input(args)
    with StageOutput(args.output_path, settings(args, "construct_vllm"), args.overwrite) as writer:
        if writer.complete:
            return
        engine = load_engine(args)
        builder = prompt_builder(args, engine.tokenizer, engine.context_length, room(args))

        def work(chunk: list[Record]) -> list[Record]:
            add_pseudo_passages(args, engine, builder, chunk)
            if args.predictions == "all":
                add_predictions(engine, builder, chunk, args.max_new_tokens)
            add_perplexities(engine, builder, chunk)
            return chunk

        write_in_chunks(writer, questions_of(args), CHUNK, partial(map, work), "perplexities", total)
        engine.close()
    if builder.cut:
        logger.info("%d prompts were too long for the LLM and were cut inside the passage", builder.cut)


if __name__ == "__main__":
    run_stage(main)
