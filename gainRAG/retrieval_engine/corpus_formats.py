"""The published formats of corpora: how each is recognised by one entry, and where its title and text are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import FieldError, Record
from gainRAG.common.schemas import split_contents


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
        prose: texts of any length, cut near the end of a sentence; a passage's id is the text's, `#` and a number.
    """

    looks: str
    detect: Callable[[Record], bool]
    read: Callable[[Record], Iterator[Text]]
    words: int = 0
    title_once: bool = False
    prose: bool = False


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


def read_contents(entry: Record, no_title: bool = False) -> Iterator[Text]:
    """FlashRAG's `title<line break>text`; with `no_title` all of it is text."""
    title, text = split_contents(_text(entry["contents"], "contents"), no_title)
    yield Text(_identity(entry), title, text, _extra(entry, "contents"))


def _title_text(entry: Record) -> Iterator[Text]:
    yield Text(_identity(entry), _title(entry), _text(entry["text"], "text"), _extra(entry, "text"))


def _langchain(entry: Record) -> Iterator[Text]:
    """A Document's fields, or those in the `kwargs` of one that LangChain's `dumps` wrote."""
    entry = entry if "page_content" in entry else entry["kwargs"]
    yield _document(entry, entry["page_content"], "page_content", entry.get("id"))


def _is_langchain(entry: Record) -> bool:
    return "page_content" in entry or (isinstance(entry.get("kwargs"), dict) and "page_content" in entry["kwargs"])


def _llamaindex(entry: Record) -> Iterator[Text]:
    """A Document's or node's `text`; newer versions write `text_resource.text`."""
    text = entry["text"] if "text" in entry else (entry["text_resource"] or {}).get("text")
    yield _document(entry, text, "text", entry.get("id_", entry.get("id")))


def _is_llamaindex(entry: Record) -> bool:
    resource = isinstance(entry.get("text_resource"), dict)
    return (
        not {"title", "_id"} & entry.keys()
        and isinstance(entry.get("metadata"), dict)
        and ("text" in entry or resource)
    )


def _document(entry: Record, text: Any, field: str, identity: Any) -> Text:
    """A text whose title is in its metadata: `title`, else the name of its file (`file_name`, `source`)."""
    metadata = entry.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise FieldError("metadata", f"{metadata!r:.80} is not an object")
    file = metadata.get("file_name") or metadata.get("source") or ""
    title = metadata.get("title") or PurePath(_text(file, "metadata.source")).stem
    extra = {"metadata": metadata} if metadata else {}
    name = None if identity is None else str(identity)
    return Text(name, _text(title, "metadata.title"), _text(text, field), extra)


def _is_title_text(entry: Record) -> bool:
    """A text with a title or an id; BEIR has texts without a title."""
    return "text" in entry and not {"title", "_id", "id"}.isdisjoint(entry)


def _title(entry: Record) -> str:
    return _text(entry.get("title") or "", "title")


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
    "flashrag": Format("JSON lines with 'contents': title<line break>text", lambda e: "contents" in e, read_contents),
    "langchain": Format(
        "JSON lines with 'page_content', 'metadata' (LangChain's documents)", _is_langchain, _langchain, 100, prose=True
    ),
    "llamaindex": Format(
        "JSON lines with 'text', 'metadata' (LlamaIndex's documents)", _is_llamaindex, _llamaindex, 100, prose=True
    ),
    "title_text": Format("JSON lines with 'text', and 'title' or 'id'", _is_title_text, _title_text),
}


DOCUMENT = Format("a file of text", lambda entry: False, lambda entry: iter(()), words=100, prose=True)


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
    if "question" in entry or "golden_answers" in entry:
        raise UserError(f"{where}: found {found}: these are questions, which prepare_questions.py reads; no corpus")
    raise UserError(f"{where}: found {found}: no known corpus format; --help lists them")
