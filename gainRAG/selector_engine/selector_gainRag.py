"""Selection: of each question's retrieved passages and the LLM's own pseudo-passage, those that help the LLM most.

The cross-encoder scores (question, title + line break + text) of the first `--n_candidates` passages and the
pseudo-passage; the best `--K_docs` stay in `ctxs`, each with `selector_score` and `is_pseudo`. Pseudo-passages are
written by the LLM in one batched pass and kept in OUT.background.jsonl; another selector takes them from there by
`--background_path`. Recall before and after goes to OUT.metrics.json. A run that was stopped resumes with the same
command.

    python -m gainRAG.selector_engine.selector_gainRag --model_name_or_path SELECTOR --data_path retrieved.jsonl \\
        --output_path selected.json --K_docs 1 --lm_type Llama-3-8B-Instruct
"""

import argparse
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from gainRAG.common.batching import chunk_size
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
from gainRAG.common.jsonl import Record, output_file, read_records, write_json
from gainRAG.common.models import DTYPES, dtype_name, pick_device
from gainRAG.common.parallel import add_worker_arguments, map_chunks, worker_options
from gainRAG.common.progress import report_few_passages
from gainRAG.common.resume import StageOutput, again
from gainRAG.common.schemas import as_retrieved, passage_text
from gainRAG.common.settings import stage_settings
from gainRAG.evaluation.recall import mark_hits, match_rule, recall_at
from gainRAG.llm_inference.background import (
    PseudoPassageOptions,
    add_background_arguments,
    background_settings,
    pseudo_passage,
    pseudo_passage_lookup,
    pseudo_passage_options,
    write_pseudo_passage_file,
)
from gainRAG.llm_inference.engine import add_engine_arguments, check_engine, engine_options, generation_options
from gainRAG.llm_inference.lengths import LengthCheck, add_length_arguments
from gainRAG.prompts import TASKS
from gainRAG.selector_engine.selector import Selector, check_selector, keep_best, selector_dtype

FLAGS = ("K_docs", "n_candidates", "no_pseudo", "keep_na", "max_length", "limit", "skip_too_long")  # of the settings
CHUNK = {"cuda": 128, "cpu": 8}  # questions scored together, and what an interruption can cost
LEAST_CHUNK = 8  # questions: 808 pairs, which still fill a GPU


def parse_arguments() -> argparse.Namespace:
    """The flags, checked as far as no file is needed."""
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="the selector: a folder, a known name or a hub id, with one logit")
    add("--data_path", required=True, help="retrieval output (questions with ctxs, best first)")
    add("--output_path", required=True, help="selection output, .jsonl or .json")
    add("--K_docs", type=positive_int, default=1, help="passages kept a question")
    add("--n_candidates", type=positive_int, default=100, help="retrieved passages considered a question")
    add("--max_length", type=positive_int, default=512, help="tokens of question and passage; the passage is cut")
    add(
        "--batch_tokens",
        type=positive_int,
        default=None,
        help="tokens (padding included) in one of the selector's batches; None goes by the device",
    )
    add(
        "--selector_dtype",
        choices=("auto", *DTYPES),
        default=None,
        help="number format of the selector's weights; None: float16 on a GPU, float32 on a CPU",
    )
    add("--limit", type=positive_int, default=None, help="only the first questions")
    add_overwrite_argument(parser)
    add_background_arguments(parser)
    add_length_arguments(parser)
    add_engine_arguments(parser)
    add_worker_arguments(parser)
    parser.set_defaults(task=next(iter(TASKS)))  # the wording for pseudo-passages is the same for every task
    args = parser.parse_args()
    candidates = args.n_candidates + (not args.no_pseudo)
    if args.K_docs > candidates:
        raise UserError(
            f"--K_docs {args.K_docs}: a question has at most {candidates} candidates; "
            "take fewer, or a higher --n_candidates"
        )
    if args.no_pseudo and args.background_path:
        raise UserError("--no_pseudo leaves out what --background_path brings in; give one of them")
    return args


def main() -> None:
    args = parse_arguments()
    path = output_file(args.output_path)
    workers, engine = worker_options(**vars(args)), engine_options(**vars(args))
    options = pseudo_passage_options(**vars(args))
    generation = replace(generation_options(**vars(args)), max_new_tokens=options.max_new_tokens)
    keep_apart(path, input_file(args.data_path), args.background_path)
    lengths = None
    if options.written_here:
        check_engine(engine)
        reserved = options.max_new_tokens
        lengths = LengthCheck(engine, generation, reserved, args.skip_too_long, pseudo_tokens=reserved)
    read = partial(read_candidates, args.data_path, args.n_candidates, args.limit, lengths)
    questions, before = check_input(read(), args.n_candidates)
    too_long = 0
    if lengths:
        lengths.report(len(questions))
        too_long = lengths.skipped
    selector = check_selector(args.model_name_or_path)
    device = pick_device(args.device)
    pseudo = [] if options.written_here else pseudo_passages(questions, options)
    settings = stage_settings(
        "selector_gainRag",
        {"model_name_or_path": selector, "data_path": args.data_path, "background_path": options.path},
        **{name: getattr(args, name) for name in FLAGS},
        pseudo_passages=background_settings(engine, generation) if options.written_here else None,
        selector_dtype=dtype_name(selector_dtype(args.selector_dtype, device)),
    )
    worker = partial(
        SelectionWorker,
        args.model_name_or_path,
        args.K_docs,
        device=args.device,
        dtype=args.selector_dtype,
        max_length=args.max_length,
        batch_tokens=args.batch_tokens,
    )
    with StageOutput(path, settings, args.overwrite) as output:
        if options.written_here:
            options = replace(options, path=path.with_suffix(".background.jsonl"))
            afresh = again(args.overwrite, output)
            write_pseudo_passage_file(options.path, questions, args.data_path, engine, generation, workers, afresh)
            pseudo = pseudo_passages(questions, options)
        records = with_pseudo_passages(read(), pseudo)
        size = chunk_size(CHUNK[device.type], LEAST_CHUNK, len(questions), workers.num_workers)
        chunks = output.remaining(records, size, "selecting", len(questions))
        for selected in map_chunks(worker, chunks, workers):
            output.append(selected)
    metrics = selection_metrics(before, read_hits(path), pseudo, args.K_docs, args.n_candidates)
    write_json(path.with_suffix(".metrics.json"), {**metrics, "too_long": too_long})
    print_report(metrics)
    command = f"python -m gainRAG.rag_workflow.rag_generation --data_path {path} --K_docs {args.K_docs}"
    say_next("picks", path, f"{command} --task TASK --lm_type {args.lm_type}")


def check_input(records: Iterable[Record], n_candidates: int) -> tuple[list[Record], list[Record]]:
    """Reads every record once, so that a bad one ends the run before any model loads.

    Returns:
        The questions without passages, and of each question's passages no more than `hasanswer`.
    """
    questions, hits = [], []
    for record in records:
        hits.append({"ctxs": [{"hasanswer": passage["hasanswer"]} for passage in record.pop("ctxs")]})
        questions.append(record)
    few = sum(len(record["ctxs"]) < n_candidates for record in hits)
    report_few_passages(few, len(hits), "--n_candidates", n_candidates)
    return questions, hits


def read_candidates(
    data_path: str, n_candidates: int, limit: int | None, lengths: LengthCheck | None
) -> Iterator[Record]:
    """The input's first questions, `ctxs` cut to the candidates, each with `hasanswer` and `is_pseudo`.

    Args:
        lengths: leaves out or refuses questions that the LLM, asked for pseudo-passages, has no room for.
    """
    shape = (lambda record: lengths(as_retrieved(record))) if lengths else as_retrieved
    for record in itertools.islice(read_records(data_path, shape), limit):
        passages = mark_hits(record["ctxs"][:n_candidates], record["answers"], match_rule(record))
        yield {**record, "ctxs": [{**passage, "is_pseudo": False} for passage in passages]}


def pseudo_passages(questions: list[Record], options: PseudoPassageOptions) -> list[Record | None]:
    """The pseudo-passage of each question; None where none is wanted, or the LLM knew nothing."""
    if not options.wanted:
        return [None] * len(questions)
    texts = map(pseudo_passage_lookup(options.path), questions)
    found = (pseudo_passage(text, options.keep_na) for text in texts)
    return [
        passage and mark_hits([passage], question["answers"], match_rule(question))[0]
        for passage, question in zip(found, questions, strict=True)
    ]


def with_pseudo_passages(records: Iterable[Record], pseudo: list[Record | None]) -> Iterator[Record]:
    """Each question with its pseudo-passage as the last candidate."""
    for record, passage in zip(records, pseudo, strict=True):
        yield {**record, "ctxs": [*record["ctxs"], *([passage] if passage else [])]}


class SelectionWorker:
    """A worker (common.parallel): questions with candidates -> the same questions with the best `k` of them.

    Args:
        options: as `Selector` takes them.
    """

    def __init__(self, model_name_or_path: str, k: int, **options) -> None:
        self.k = k
        self.selector = Selector(model_name_or_path, **options)

    def __call__(self, chunk: list[Record]) -> list[Record]:
        pairs = [(record["question"], passage_text(passage)) for record in chunk for passage in record["ctxs"]]
        ends = np.cumsum([len(record["ctxs"]) for record in chunk])
        return [
            {**record, "ctxs": keep_best(record["ctxs"], scores, self.k)}
            for record, scores in zip(chunk, np.split(self.selector.score(pairs), ends[:-1]), strict=True)
        ]


def read_hits(path: Path) -> list[Record]:
    """The selected questions; of each passage, which may be a hundred a question, `hasanswer` and `is_pseudo` alone."""
    return [
        {"ctxs": [{name: passage[name] for name in ("hasanswer", "is_pseudo")} for passage in record["ctxs"]]}
        for record in read_records(path)
    ]


def selection_metrics(
    before: list[Record], after: list[Record], pseudo: list[Record | None], k: int, n_candidates: int
) -> Record:
    """Recall of the retrieved order and of the selection, and how often the pseudo-passage came first.

    Args:
        before, after: the questions' `ctxs` with `hasanswer`, as retrieved and as selected.
    """
    ks = sorted({1, k})
    won = sum(bool(record["ctxs"]) and record["ctxs"][0]["is_pseudo"] for record in after)
    return {
        "questions": len(before),
        "K_docs": k,
        "recall_before": {f"top_{k}": share for k, share in recall_at(before, ks).items()},
        "recall_after": {f"top_{k}": share for k, share in recall_at(after, ks).items()},
        "recall_of_all_retrieved": recall_at(before, [n_candidates])[n_candidates],
        "pseudo_passages": sum(passage is not None for passage in pseudo),
        "pseudo_won": won / len(before),
    }


def print_report(metrics: Record) -> None:
    """Prints the metrics, shares in percent."""
    print(
        f"{metrics['questions']} questions, {metrics['pseudo_passages']} with a pseudo-passage; "
        f"it was picked first for {metrics['pseudo_won']:.1%}"
    )
    for name, before in metrics["recall_before"].items():
        print(f"recall {name.replace('_', ' ')}: retrieved {before:.1%}, selected {metrics['recall_after'][name]:.1%}")
    print(f"recall of all candidates retrieved: {metrics['recall_of_all_retrieved']:.1%}")


if __name__ == "__main__":
    run_stage(main)
