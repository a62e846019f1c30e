"""Keeps the questions whose best passage by gain was answered correctly, by the predictions that construct_hf stored.

With `--keep holds` no predictions are needed: those whose best passage holds a gold answer stay.

    cd data && python data_filter.py --data_path gains.jsonl --output_path kept.jsonl
"""

import logging
from collections import Counter
from functools import partial

from gainRAG.common.cli import keep_apart, run_stage, say_next, stage_parser
from gainRAG.common.jsonl import read_records, write_records
from gainRAG.evaluation.gains import add_filter_arguments, as_answered, describe_kept, filter_options, keep_answered

logger = logging.getLogger("data_filter")


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--data_path", required=True, help="supervision records with PPL_CD and EM_with_retrieval")
    parser.add_argument("--output_path", required=True, help="the records kept, .jsonl or .json")
    add_filter_arguments(parser)
    args = parser.parse_args()
    keep_apart(args.output_path, args.data_path)
    options, counts = filter_options(**vars(args)), Counter()
    records = read_records(args.data_path, partial(as_answered, options=options))
    write_records(args.output_path, keep_answered(records, options, counts))
    logger.info("%s: %s", args.output_path, describe_kept(counts))
    if counts["kept"]:
        command = f"python data/data2selector.py --data_path {args.output_path} --output_path TRAIN.jsonl"
        say_next("questions kept", args.output_path, command)


if __name__ == "__main__":
    run_stage(main)
