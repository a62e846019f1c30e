"""A user's own documents as texts: the files of a folder, their titles, and the cutting into passages."""

import codecs
import os
import re
from collections.abc import Iterator
from pathlib import Path

from gainRAG.common.cli import UserError, input_file

TEXT_ENDINGS, RECORD_ENDINGS = (".txt", ".md"), (".jsonl",)
HEADING = re.compile(r"#{1,6}(?=\s)(.*?)(\s#+)?")  # `# Title ##` is `Title`; the sharp of `C#` belongs to the word
UNDERLINE = re.compile(r"=+\s*")
SENTENCE_END = re.compile(r"""[.!?…。！？]["'”’)\]]*$""")
FENCE = ("```", "~~~")


def document_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder and of those in it, by name: those that are read, and the others. Hidden ones are neither.

    Raises:
        UserError: it has no file that is read, or one whose name is not UTF-8.
    """
    files = sorted(_walk(folder))
    read = [path for path in files if _is_read(path)]
    if not read:
        found = ", ".join(sorted({path.suffix or path.name for path in files})) or "no file"
        raise UserError(f"{folder}: holds no .txt, .md or .jsonl file (found {found:.200}); save the documents as such")
    for path in read:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            problem = "the file's name is not UTF-8, and passages get their ids from it; rename it"
            raise UserError(f"{path}: {problem}") from None
    return read, [path for path in files if not _is_read(path)]


def _walk(folder: Path) -> Iterator[Path]:
    """The files that are not hidden, also behind links to folders; a folder that is reached twice counts once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in names if not name.startswith(".") and (path := Path(place, name)).is_file())


def _is_read(path: Path) -> bool:
    return path.suffix.lower() in TEXT_ENDINGS or path.suffix in RECORD_ENDINGS


def read_document(path: Path) -> tuple[str, str]:
    """Title and text of a .txt or .md file: a Markdown file's first heading, else the file's name without ending.

    Raises:
        UserError: it is not UTF-8 text, or cannot be read.
    """
    data = input_file(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise UserError(f"{path}:{line}: is not UTF-8 text; save the file as UTF-8") from None
    if path.suffix.lower() == ".md":
        lines = text.splitlines()
        for start, end, title in _headings(lines):
            return title, "\n".join(lines[:start] + lines[end:])
    return path.stem, text


def _headings(lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """The lines [start, end) and the text of each heading, `# ...` or underlined with `===`; a comment inside a block
    of code is none."""
    fenced = False
    for number, line in enumerate(lines):
        if line.lstrip().startswith(FENCE):
            fenced = not fenced
        if fenced:
            continue
        if (found := HEADING.fullmatch(line.rstrip())) and (title := found[1].strip()):
            yield number, number + 1, title
        elif line.strip() and number + 1 < len(lines) and UNDERLINE.fullmatch(lines[number + 1]):
            yield number, number + 2, line.strip()


def cut_blocks(text: str, words: int) -> list[str]:
    """Disjoint blocks of `words` words, the last one shorter; 0 keeps the text whole."""
    every = text.split()
    size = words or len(every)
    return [" ".join(every[start : start + size]) for start in range(0, len(every), size)]


def cut_near_ends(text: str, words: int) -> list[str]:
    """Disjoint blocks of at most `words` words; 0 keeps the text whole.

    A block ends with a paragraph (an empty line follows), else with a sentence, if one ends in the block's last third.
    """
    every, paragraph_ends = [], set()
    for paragraph in re.split(r"\n\s*\n", text):
        every += paragraph.split()
        paragraph_ends.add(len(every))
    sentence_ends = {number for number, word in enumerate(every, 1) if SENTENCE_END.search(word)}
    blocks, start = [], 0
    while words and len(every) - start > words:
        near = range(start + words, start + words - max(words // 3, 1), -1)
        places = (place for ends in (paragraph_ends, sentence_ends) for place in near if place in ends)
        end = next(places, start + words)
        blocks.append(" ".join(every[start:end]))
        start = end
    return [*blocks, *([" ".join(every[start:])] if every[start:] else [])]
