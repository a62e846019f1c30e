"""Picks from scores that are there: a selector scores all candidates once, every selection by it follows.

selector_gainRag with --K_docs as high as there are candidates (one more than --n_candidates, for the pseudo-passage)
writes each question's candidates with their `selector_score`, best first. This takes the best --K_docs of them, also as
if there were no pseudo-passage. A finished output is left as it is:

    python -m gainRAG.selector_engine.pick_best --data_path scored.jsonl --output_path picked.jsonl --no_pseudo
"""

import argparse
from itertools import pairwise

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
from gainRAG.common.jsonl import FieldError, Record, output_file, read_records
from gainRAG.common.resume import StageOutput
from gainRAG.common.schemas import as_scored
from gainRAG.common.settings import stage_settings

CHUNK = 256  # questions


def parse_arguments() -> argparse.Namespace:
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", required=True, help="selection output with all candidates, best first")
    parser.add_argument("--output_path", required=True, help="selection output, .jsonl or .json")
    parser.add_argument("--K_docs", type=positive_int, default=1, help="passages kept a question")
    parser.add_argument("--no_pseudo", action="store_true", help="leave the LLM's own passages out")
    add_overwrite_argument(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    path = output_file(args.output_path)
    inputs = {"data_path": input_file(args.data_path)}
    keep_apart(path, args.data_path)
    settings = stage_settings("pick_best", inputs, K_docs=args.K_docs, no_pseudo=args.no_pseudo)
    overwrite = args.overwrite or ("" if path.exists() else "all")  # too quick to resume halfway
    with StageOutput(path, settings, overwrite) as output:
        for chunk in output.remaining(read_records(args.data_path, as_ranked), CHUNK, "picking"):
            output.append([pick(record, args.K_docs, args.no_pseudo) for record in chunk])
    command = f"python -m gainRAG.rag_workflow.rag_generation --data_path {args.output_path} --K_docs {args.K_docs}"
    say_next("picks", args.output_path, f"{command} --task TASK --lm_type LLM")


def pick(record: Record, k: int, no_pseudo: bool) -> Record:
    """A question with its best passages."""
    passages = [one for one in record["ctxs"] if not (no_pseudo and one.get("is_pseudo"))]
    if record["ctxs"] and not passages:
        raise UserError(
            f"question {record.get('id')!r}: --no_pseudo leaves it no passage; --data_path wants all candidates, "
            "selected with a --K_docs as large as their number"
        )
    return {**record, "ctxs": passages[:k]}


def as_ranked(record: Record) -> Record:
    """A question whose `ctxs` have a `selector_score` each, none higher than the one before."""
    record = as_scored(record)
    scores = [passage["selector_score"] for passage in record["ctxs"]]
    for rank, (before, score) in enumerate(pairwise(scores), 1):
        if score > before:
            raise FieldError(f"ctxs[{rank}].selector_score", f"{score} is above the {before} before it")
    return record


if __name__ == "__main__":
    run_stage(main)
