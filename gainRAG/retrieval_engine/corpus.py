"""Reading a corpus file: psgs_w100.tsv (DPR's columns id, text, title) or .jsonl, plain or as .gz."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gainRAG.common.cli import UserError, input_file
from gainRAG.common.jsonl import Record, parse_json, why_no_text
from gainRAG.common.progress import ProgressBar
from gainRAG.common.schemas import split_contents

COLUMNS = ("id", "text", "title")
ENDINGS = (".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz")
MAX_FIELD_BYTES = 1 << 27


class Row(NamedTuple):
    """One passage of a corpus file; `extra` holds the fields that we do not know."""

    line: int
    id: str
    title: str
    text: str
    extra: Record


def corpus_file(path: str | Path) -> Path:
    """`path` as a Path.

    Raises:
        UserError: it is missing, or ends in none of ENDINGS.
    """
    path = input_file(path)
    if not path.name.endswith(ENDINGS):
        raise UserError(f"{path}: a corpus ends in {', '.join(ENDINGS)}")
    return path


def read_corpus(corpus: Path, no_title: bool = False) -> Iterator[Row]:
    """A corpus file's passages, with a progress bar over its bytes.

    Args:
        no_title: the first line of FlashRAG's `contents` is text as well, not a title.

    Raises:
        UserError: bad UTF-8, a truncated .gz, a missing column or field: names file and line.
    """
    is_table = corpus.name.removesuffix(".gz").endswith(".tsv")
    with (
        corpus.open("rb") as raw,
        ProgressBar(total=corpus.stat().st_size, unit="B", unit_scale=True, desc="passages") as bar,
    ):
        rows = (_table_rows if is_table else partial(_json_rows, no_title=no_title))(corpus, _lines(corpus, raw))
        for number, row in enumerate(rows):
            yield row
            if number % 4096 == 0:
                bar.update(raw.tell() - bar.n)
        bar.update(raw.tell() - bar.n)


def _lines(corpus: Path, raw) -> Iterator[tuple[int, bytes]]:
    file = gzip.GzipFile(fileobj=raw) if corpus.name.endswith(".gz") else raw
    number = 0
    while True:
        try:
            line = file.readline()
        except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
            raise UserError(
                f"{corpus}:{number + 1}: the .gz is cut short or damaged ({problem}); download it again"
            ) from None
        if not line:
            return
        number += 1
        yield number, line


def has_contents(corpus: Path) -> bool:
    """Whether the first passage of a corpus file has FlashRAG's `contents`."""
    if ".jsonl" not in corpus.suffixes:
        return False
    with corpus.open("rb") as raw:
        first = next((line for _, line in _lines(corpus, raw) if line.strip()), b"null")
    try:
        record = parse_json(first, str(corpus))
    except UserError:
        return False
    return isinstance(record, dict) and "contents" in record and "text" not in record


def _json_rows(corpus: Path, lines: Iterator[tuple[int, bytes]], no_title: bool) -> Iterator[Row]:
    for number, line in lines:
        if line.strip():
            where = f"{corpus}:{number}"
            yield Row(number, *_json_passage(where, parse_json(line, where), no_title))


def _json_passage(where: str, record: Record, no_title: bool) -> tuple[str, str, str, Record]:
    if not isinstance(record, dict):
        raise UserError(f"{where}: wanted an object, found {type(record).__name__}")
    if isinstance(record.get("contents"), str) and "text" not in record:
        title, text = split_contents(record.pop("contents"), no_title)
        record |= {"title": title, "text": text}
    if "id" not in record and "_id" in record:  # BEIR
        record["id"] = record.pop("_id")
    for field, kinds in (("id", str | int), ("text", str)):
        if field not in record:
            raise UserError(f"{where}: field '{field}' is missing; wanted id, title and text, or id and contents")
        if not isinstance(record[field], kinds) or isinstance(record[field], bool):
            raise UserError(f"{where}: field '{field}': {record[field]!r:.80} is not text")
    title = record.get("title") or ""
    if not isinstance(title, str):
        raise UserError(f"{where}: field 'title': {title!r:.80} is not text")
    extra = {field: value for field, value in record.items() if field not in COLUMNS}
    return str(record["id"]), title, record["text"], extra


def _table_rows(corpus: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    ended = False

    def decode_lines() -> Iterator[str]:
        nonlocal ended
        for number, line in lines:
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as problem:
                raise UserError(f"{corpus}:{number}: {why_no_text(line)} (byte {problem.start})") from None
        ended = True

    reader = csv.reader(decode_lines(), delimiter="\t")
    start = 1
    try:
        places = _columns(corpus, next(reader, []))
        start = reader.line_num + 1
        for row in reader:  # inside a quoted field it asks for one line more before it gives the row
            if ended or any("\n" in field and "\t" in field for field in row):
                raise UserError(f"{corpus}:{start}: a field opens with a quotation mark that is not closed")
            if row:
                if len(row) <= max(places):
                    raise UserError(f"{corpus}:{start}: {len(row)} columns, wanted {', '.join(COLUMNS)}")
                passage_id, text, title = (row[place] for place in places)
                yield Row(start, passage_id, title, text, {})
            start = reader.line_num + 1
    except csv.Error as problem:
        raise UserError(f"{corpus}:{start}: {problem}") from None


def _columns(corpus: Path, header: list[str]) -> list[int]:
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise UserError(
            f"{corpus}:1: the header lacks {', '.join(missing)}; wanted tab-separated columns {', '.join(COLUMNS)}, "
            f"found {', '.join(header) or 'nothing':.200}"
        )
    return [header.index(column) for column in COLUMNS]
