"""Selection: of each question's retrieved passages and the LLM's own pseudo-passage, those that help the LLM most.

The cross-encoder scores (question, title + line break + text) of the first `--n_candidates` passages and the
pseudo-passage; the best `--K_docs` stay in `ctxs`, each with `selector_score` and `is_pseudo`. Pseudo-passages are
written by the LLM in one batched pass and kept in OUT.background.jsonl; another selector takes them from there by
`--background_path`. Recall before and after goes to OUT.metrics.json. A run that was stopped goes on with the same
command.

    python -m gainRAG.selector_engine.selector_gainRag --model_name_or_path SELECTOR --data_path retrieved.jsonl \\
        --output_path selected.json --K_docs 1 --lm_type Llama-3-8B-Instruct
"""

import argparse
import itertools
import logging
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from gainRAG.common.cli import UserError, positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import Record, output_file, read_records, write_json
from gainRAG.common.models import DTYPES, pick_device
from gainRAG.common.parallel import add_worker_arguments, check_worker_arguments, map_chunks
from gainRAG.common.resume import StageOutput, stage_settings, write_in_chunks
from gainRAG.common.schemas import as_retrieved, passage_text
from gainRAG.evaluation.recall import AnswerMatcher, recall_at
from gainRAG.llm_inference.background import (
    add_background_arguments,
    background_file,
    pseudo_passage,
    read_backgrounds,
)
from gainRAG.llm_inference.engine import add_engine_arguments, check_engine_arguments
from gainRAG.prompts import TASKS

logger = logging.getLogger(__name__)

CHUNK = {"cuda": 128, "cpu": 8}  # questions tokenised and scored together, and what an interruption can cost
CHUNKS_A_CALL = 4  # handed to a worker of several: it tokenises the next while it scores one


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
    add("--overwrite", action="store_true", help="start afresh, pseudo-passages written here included")
    add_background_arguments(parser)
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


def retrieved_candidates(args: argparse.Namespace) -> Iterator[Record]:
    """The input's questions, `ctxs` cut to the candidates, each with `hasanswer` and `is_pseudo`."""
    for record in itertools.islice(read_records(args.data_path, as_retrieved), args.limit):
        matcher = AnswerMatcher(record["answers"])
        passages = []
        for passage in record["ctxs"][: args.n_candidates]:
            hit = passage.get("hasanswer")
            hit = matcher.matches(passage["text"]) if hit is None else hit
            passages.append({**passage, "hasanswer": hit, "is_pseudo": False})
        yield {**record, "ctxs": passages}


def check_input(args: argparse.Namespace) -> tuple[list[Record], list[Record]]:
    """Reads every record once, so that a bad one ends the run before any model loads.

    Returns:
        The questions without passages, and of each question's passages no more than `hasanswer`.
    """
    questions, hits = [], []
    for record in retrieved_candidates(args):
        questions.append({name: value for name, value in record.items() if name != "ctxs"})
        hits.append({"ctxs": [{"hasanswer": passage["hasanswer"]} for passage in record["ctxs"]]})
    short = sum(len(record["ctxs"]) < args.n_candidates for record in hits)
    if short:
        logger.info(
            "%d of %d questions have fewer than %d retrieved passages and use what they have",
            short,
            len(hits),
            args.n_candidates,
        )
    return questions, hits


def pseudo_passages(args: argparse.Namespace, questions: list[Record]) -> tuple[Path | None, list[Record | None]]:
    """The file of pseudo-passages, and the passage of each question (None where the LLM knew nothing)."""
    if args.no_pseudo:
        return None, [None] * len(questions)
    if args.background_path:
        path, texts = Path(args.background_path), read_backgrounds(args.background_path, questions)
    else:
        path = Path(args.output_path).with_suffix(".background.jsonl")
        texts = background_file(path, questions, args, Path(args.data_path))
    found = [pseudo_passage(text) for text in texts]
    for passage, question in zip(found, questions, strict=True):
        if passage:
            passage["hasanswer"] = AnswerMatcher(question["answers"]).matches(passage["text"])
    return path, found


def with_pseudo(records: Iterable[Record], pseudo: list[Record | None]) -> Iterator[Record]:
    """Each question with its pseudo-passage as the last candidate."""
    for record, passage in zip(records, pseudo, strict=True):
        yield {**record, "ctxs": [*record["ctxs"], *([passage] if passage else [])]}


class SelectionWorker:
    """Keeps each question's best candidates; see `workers.Worker`. Chunks to come are tokenised while one is scored."""

    def __init__(self, args: argparse.Namespace) -> None:
        from gainRAG.selector_engine.selector import Selector

        self.k = args.K_docs
        self.selector = Selector(
            args.model_name_or_path, args.device, args.selector_dtype, args.max_length, batch_tokens=args.batch_tokens
        )

    def __call__(self, chunks: Iterator[list[Record]]) -> Iterable[list[Record]]:
        chunks, to_score = itertools.tee(chunks)
        return map(self.best, chunks, self.selector.score_chunks(map(pairs_of, to_score)))

    def best(self, chunk: list[Record], scores: np.ndarray) -> list[Record]:
        """The chunk, `ctxs` cut to the best; `scores` (candidates of all its questions,)."""
        from gainRAG.selector_engine.selector import keep_best

        kept, start = [], 0
        for record in chunk:
            stop = start + len(record["ctxs"])
            kept.append({**record, "ctxs": keep_best(record["ctxs"], scores[start:stop], self.k)})
            start = stop
        return kept

    def close(self) -> None:
        """Nothing is loaded after it."""


def pairs_of(chunk: list[Record]) -> list[tuple[str, str]]:
    """The (question, passage) pairs of a chunk."""
    return [(record["question"], passage_text(passage)) for record in chunk for passage in record["ctxs"]]


def metrics_of(
    args: argparse.Namespace, before: list[Record], pseudo: list[Record | None], after: list[Record]
) -> Record:
    """Recall of the retrieved order and of the selection, and how often the pseudo-passage came first."""
    questions = len(before)
    ks = sorted({1, args.K_docs})
    won = sum(bool(record["ctxs"]) and record["ctxs"][0]["is_pseudo"] for record in after)
    return {
        "questions": questions,
        "K_docs": args.K_docs,
        "recall_before": {f"top_{k}": share for k, share in recall_at(before, ks).items()},
        "recall_after": {f"top_{k}": share for k, share in recall_at(after, ks).items()},
        "recall_of_all_retrieved": recall_at(before, [args.n_candidates])[args.n_candidates],
        "pseudo_passages": sum(passage is not None for passage in pseudo),
        "pseudo_won": won / questions,
    }


def report(metrics: Record) -> None:
    """Prints the metrics, shares in percent."""
    print(
        f"questions {metrics['questions']}, with a pseudo-passage {metrics['pseudo_passages']}, "
        f"won by it {metrics['pseudo_won']:.1%}"
    )
    for name, before in metrics["recall_before"].items():
        print(f"recall {name.replace('_', ' ')}: retrieved {before:.1%}, selected {metrics['recall_after'][name]:.1%}")
    print(f"recall of all candidates retrieved: {metrics['recall_of_all_retrieved']:.1%}")


def main() -> None:
    args = parse_arguments()
    output_file(args.output_path)
    check_worker_arguments(args)
    questions, before = check_input(args)
    from gainRAG.selector_engine.selector import check_selector, selector_dtype

    selector_path = check_selector(args.model_name_or_path)
    device = pick_device(args.device)
    if not (args.no_pseudo or args.background_path):
        check_engine_arguments(args)
    background_path, pseudo = pseudo_passages(args, questions)
    settings = stage_settings(
        "selector_gainRag",
        {"model_name_or_path": selector_path, "data_path": args.data_path, "background_path": background_path},
        **{name: getattr(args, name) for name in ("K_docs", "n_candidates", "no_pseudo", "max_length", "limit")},
        selector_dtype=str(selector_dtype(args.selector_dtype, device)).removeprefix("torch."),
    )
    with StageOutput(args.output_path, settings, args.overwrite) as writer:
        if not writer.complete:
            records = with_pseudo(retrieved_candidates(args), pseudo)
            work = partial(map_chunks, args, partial(SelectionWorker, args), group=CHUNKS_A_CALL)
            write_in_chunks(writer, records, CHUNK[device.type], work, "selecting", len(questions))
    metrics = metrics_of(args, before, pseudo, list(read_records(args.output_path)))
    write_json(Path(args.output_path).with_suffix(".metrics.json"), metrics)
    report(metrics)


if __name__ == "__main__":
    run_stage(main)
