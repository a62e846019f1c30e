"""The plain perplexity of every candidate passage by vLLM alone: `retrieved_ppl` without the contrast.

For those who want only that: the contrastive PPL_CD needs logits over the whole vocabulary, which vLLM does not give,
so records made here train with `--signal retrieved_ppl`. Input, flags and records are construct_hf's, without alpha
and PPL_CD. The LLM works in `--dtype auto` unless told otherwise. A stopped run resumes with the same command.

    python -m gainRAG.llm_supervision.construct_vllm --data_path retrieved.jsonl --output_path ppl.jsonl \\
        --task HotpotQA --lm_type Llama-3-8B-Instruct
"""

from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from gainRAG.common.cli import input_file, keep_apart, run_stage, say_next, stage_parser
from gainRAG.common.jsonl import Record
from gainRAG.common.parallel import map_chunks
from gainRAG.common.resume import StageOutput
from gainRAG.evaluation.gains import perplexity_of
from gainRAG.llm_inference.build_prompts import PromptBuilder, encode_answers, encode_prompts
from gainRAG.llm_inference.engine import check_engine, engine_options, generation_options
from gainRAG.llm_supervision.candidates import (
    CHUNK,
    CandidateWriter,
    add_candidate_arguments,
    candidate_options,
    candidate_settings,
    count_questions,
    filter_command,
    length_check,
    read_candidates,
)

if TYPE_CHECKING:
    from gainRAG.llm_inference.inference_vllm import VLLMEngine


def main() -> None:
    parser = stage_parser(__doc__)
    add_candidate_arguments(parser, backends=("vllm",))
    args = parser.parse_args()
    keep_apart(args.output_path, input_file(args.data_path), args.background_path)
    engine, generation = engine_options(**vars(args)), generation_options(**vars(args))
    options = candidate_options(**vars(args))
    check_engine(engine)
    lengths = length_check(options, engine, generation)
    total = count_questions(options, lengths)
    settings = candidate_settings("construct_vllm", options, engine, generation)
    with StageOutput(args.output_path, settings, args.overwrite) as output:
        chunks = output.remaining(read_candidates(options, lengths), CHUNK, "perplexities", total)
        for records in map_chunks(partial(PerplexityWorker, options, engine, generation), chunks):
            output.append(records)
    command = f"{filter_command(options)} --signal retrieved_ppl --data_path {args.output_path}"
    say_next("perplexities", args.output_path, command)


class PerplexityWorker(CandidateWriter):
    """A worker (common.parallel): adds what the LLM writes, and `retrieved_ppl` of every candidate."""

    def __call__(self, chunk: list[Record]) -> list[Record]:
        records = super().__call__(chunk)
        add_perplexities(self.engine, self.builder, records)
        return records


def add_perplexities(engine: "VLLMEngine", builder: PromptBuilder, chunk: Sequence[Record]) -> None:
    """Writes `retrieved_ppl` to every candidate: the lowest perplexity over the gold answers.

    Prompt and answer are tokenised as in construct_hf.
    """
    candidates = []
    for record in chunk:
        texts = [builder.with_passages(record, [passage]) for passage in record["passages"]]
        prompts = encode_prompts(engine.tokenizer, texts, builder.chat)
        answers = encode_answers(engine.tokenizer, list(dict.fromkeys(record["answers"])), builder.chat)
        candidates += [(passage, prompt, answers) for passage, prompt in zip(record["passages"], prompts, strict=True)]
    cases = [(prompt, answer) for _, prompt, answers in candidates for answer in answers]
    found = iter(engine.answer_log_probabilities(cases))
    for passage, _, answers in candidates:
        passage["retrieved_ppl"] = min(perplexity_of(-fmean(next(found))) for _ in answers)


if __name__ == "__main__":
    run_stage(main)
