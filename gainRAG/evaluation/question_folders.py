"""The question sets of a whole folder: FlashRAG's (a file for each split) or BEIR's (queries, and qrels by split)."""

from collections.abc import Iterator
from pathlib import Path

from gainRAG.common.cli import UserError, input_file
from gainRAG.common.jsonl import Record
from gainRAG.evaluation.question_files import Tally, read_questions

SPLITS = ("train", "dev", "test")
QUERIES = "queries.jsonl"


def read_folder(folder: Path, *options) -> Iterator[tuple[str, list[Record], Tally]]:
    """Each split's name, its questions, and what was left out, as by `read_questions` with its `options`.

    Raises:
        UserError: the folder is neither FlashRAG's nor BEIR's, a file is not as it should be, or a split is empty.
    """
    if (folder / QUERIES).exists():
        yield from _beir_splits(folder, *options)
        return
    files = [folder / f"{split}.jsonl" for split in SPLITS if (folder / f"{split}.jsonl").exists()]
    if not files:
        raise UserError(
            f"{folder}: holds neither train.jsonl, dev.jsonl or test.jsonl (FlashRAG) nor {QUERIES} (BEIR); "
            "give the file itself"
        )
    for path in files:
        yield path.stem, *_read(path, *options)


def _beir_splits(folder: Path, *options) -> Iterator[tuple[str, list[Record], Tally]]:
    questions, tally = _read(folder / QUERIES, *options)
    qrels = sorted(folder.glob("qrels/*.tsv"))
    if not qrels:
        yield "all", questions, tally
    for path in qrels:
        wanted = _query_ids(path)
        chosen = [question for question in questions if question["id"] in wanted]
        if not chosen:
            raise UserError(f"{path}: names no question of {folder / QUERIES} that has an answer")
        yield path.stem, chosen, tally


def _query_ids(path: Path) -> set[str]:
    """The first column of BEIR's judgements (query-id, corpus-id, score; a header)."""
    try:
        header, *lines = input_file(path).read_text("utf-8-sig").splitlines()
    except ValueError:  # nothing to unpack, or bytes that are no text
        raise UserError(f"{path}: is empty, or not UTF-8 text") from None
    if header.split("\t")[0] != "query-id":
        raise UserError(f"{path}:1: wanted the header query-id<TAB>corpus-id<TAB>score, found {header!r:.80}")
    return {line.split("\t")[0] for line in lines if line.strip()}


def _read(path: Path, *options) -> tuple[list[Record], Tally]:
    with input_file(path).open("rb") as file:
        return read_questions(str(path), file, *options)[1:]
