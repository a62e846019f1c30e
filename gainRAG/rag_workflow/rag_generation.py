"""Answers each question from its selected passages and scores the answers.

Reads a selection (or plain retrieval output), puts the first K_docs passages into the prompt, and writes a record a
question with prompt, prediction, scores and the question's other fields; the means with their intervals go to
OUT.metrics.json.

    python -m gainRAG.rag_workflow.rag_generation --data_path selected.jsonl --task HotpotQA \\
        --lm_type Llama-3-8B-Instruct --K_docs 1
"""

import argparse
from functools import partial
from pathlib import Path

from gainRAG.common.batching import chunk_size
from gainRAG.common.cli import input_file, run_stage, say_next, stage_parser
from gainRAG.common.jsonl import Record, read_records, write_json
from gainRAG.common.parallel import add_worker_arguments, map_chunks, worker_options
from gainRAG.evaluation.results import markdown_table
from gainRAG.llm_inference.engine import (
    EngineOptions,
    GenerationOptions,
    Writer,
    check_engine,
    engine_options,
    generation_options,
    writing_workers,
)
from gainRAG.llm_inference.lengths import LengthCheck
from gainRAG.rag_workflow.answering import (
    CHUNK,
    LEAST_CHUNK,
    add_generation_arguments,
    check_questions,
    open_predictions,
    read_answerable,
    score_record,
    summarize_predictions,
    write_answers,
)


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", required=True, help="selection or retrieval output (questions with ctxs)")
    parser.add_argument(
        "--output_path", default=None, help="predictions; None: DATA.predictions.jsonl beside the input"
    )
    add_generation_arguments(parser)
    add_worker_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    engine, generation = engine_options(**vars(args)), generation_options(**vars(args))
    workers = worker_options(**vars(args))
    input_file(args.data_path)
    check_engine(engine)
    lengths = LengthCheck(engine, generation, args.max_new_tokens, args.skip_too_long)
    read = partial(read_answerable, args.data_path, args.limit, lengths)
    total, too_long = len(check_questions(read(), args.K_docs)), lengths.skipped
    lengths.report(total)
    path = Path(args.output_path or Path(args.data_path).with_suffix(".predictions.jsonl"))
    flags = args.K_docs, args.limit, args.skip_too_long, args.overwrite

    with open_predictions(path, {"data_path": args.data_path}, engine, generation, *flags) as output:
        workers = writing_workers(engine, workers)
        size = chunk_size(CHUNK, LEAST_CHUNK, total, workers.num_workers)
        chunks = output.remaining(read(), size, "answering", total)
        worker = partial(AnswerWorker, engine, generation, args.K_docs)
        for answered in map_chunks(worker, chunks, workers):
            output.append(answered)

    predictions = list(read_records(path))
    metrics = summarize_predictions(predictions, args.data_path, engine, generation, args.K_docs, too_long)
    write_json(path.with_suffix(".metrics.json"), metrics)
    print(f"{args.task}: {metrics['questions']} questions, percent\n\n{metrics_table(metrics)}", end="")
    say_next("answers", path, f"python -m gainRAG.evaluation.compare OTHER.predictions.jsonl {path}")


class AnswerWorker(Writer):
    """A worker (common.parallel): answers questions from the first `k` of their passages."""

    def __init__(self, engine: EngineOptions, generation: GenerationOptions, k: int) -> None:
        super().__init__(engine, generation)
        self.k = k

    def __call__(self, chunk: list[Record]) -> list[Record]:
        prompts = [self.builder.with_passages(record, record["ctxs"][: self.k]) for record in chunk]
        cases = zip(chunk, prompts, write_answers(self, prompts), strict=True)
        return [score_record(*case, self.builder.task) for case in cases]


def metrics_table(metrics: Record) -> str:
    """Means with their intervals, in percent."""
    rows = [
        (name, 100 * score["mean"], f"{100 * score['low']:.2f} to {100 * score['high']:.2f}")
        for name, score in metrics["metrics"].items()
    ]
    return markdown_table(("metric", "mean", "95 % interval"), rows)


if __name__ == "__main__":
    run_stage(main)
