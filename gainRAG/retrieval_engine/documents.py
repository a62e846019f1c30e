"""A user's own documents as texts: the files of a folder, their titles, and the cutting into passages."""

import re
from collections.abc import Iterator
from pathlib import Path

from gainRAG.common.cli import UserError

TEXT_ENDINGS, RECORD_ENDINGS = (".txt", ".md"), (".jsonl",)
HEADING = re.compile(r"#{1,6}\s+(.*?)[\s#]*")
SENTENCE_END = re.compile(r"""[.!?…。！？]["'”’)\]]*$""")
FENCE = ("```", "~~~")


def document_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder and of those in it, by name: those that are read, and the others. Hidden ones are neither.

    Raises:
        UserError: it has no file that is read.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    read = [path for path in files if path.suffix.lower() in TEXT_ENDINGS + RECORD_ENDINGS]
    if not read:
        found = ", ".join(sorted({path.suffix or path.name for path in files})) or "no file"
        raise UserError(f"{folder}: holds no .txt, .md or .jsonl file (found {found:.200}); save the documents as such")
    return read, [path for path in files if path not in set(read)]


def read_document(path: Path) -> tuple[str, str]:
    """Title and text of a .txt or .md file: a Markdown file's first heading, else the file's name without ending.

    Raises:
        UserError: it is not UTF-8 text.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}: is not UTF-8 text (byte {problem.start}); save the file as UTF-8") from None
    if path.suffix.lower() == ".md":
        lines = text.splitlines()
        for number, title in _headings(lines):
            return title, "\n".join(lines[:number] + lines[number + 1 :])
    return path.stem, text


def _headings(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Line number (from 0) and text of each heading `# ...`; a comment inside a block of code is none."""
    fenced = False
    for number, line in enumerate(lines):
        if line.lstrip().startswith(FENCE):
            fenced = not fenced
        found = HEADING.fullmatch(line)
        if found and found[1] and not fenced:
            yield number, found[1]


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
