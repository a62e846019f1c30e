"""How a passage or a question is put into words for an encoder: title and text, case, typographic characters.

Passages and questions must go through the same options, or their vectors do not meet; `TextOptions` holds them.
"""

from dataclasses import dataclass

from gainRAG.common.jsonl import Record

# Character by character what Contriever's own clean-up does (Izacard et al., 2022, published code).
_REPLACED = {
    "": [*map(chr, [*range(0x01, 0x09), 0x0E, 0x0F, *range(0x11, 0x1C)]), "\u00ad"],  # controls, the soft hyphen
    " ": ["\u000b", "\u000c", "\u0085"],
    "-": [*"\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\uff0d\u207b"],
    '"': [*"\u201c\u201d\u201e\u201f"],
    "'": [*"\u2018\u2019\u201a\u201b\u055a\ua78b\ua78c\uff07`\u00b4\u2032\u2035"],
    "''": ["\u2033", "\u2036"],
    "'''": ["\u2034", "\u2037"],
    "''''": ["\u2057"],
    "...": ["\u2026"],
    "/": ["\u2044", "\u2215"],
    "~": [*"\u02dc\u2053\u223c\u223d\u223f\u301c\uff5e"],
}
_TABLE = str.maketrans({character: plain for plain, characters in _REPLACED.items() for character in characters})


def normalize_text(text: str) -> str:
    """Typographic characters (dashes, quotes, primes, slashes, tildes, the ellipsis) in plain ASCII, as Contriever."""
    return text.translate(_TABLE).replace(" . . . ", " ... ")


@dataclass(frozen=True)
class TextOptions:
    """What is done to a text before the encoder's tokenizer sees it.

    Attributes:
        lowercase: lower-case it.
        normalize_text: `normalize_text`.
        no_title: a passage is its text alone, without its title before it.
        passage_prefix, query_prefix: put before the text as they are ("passage: ", "query: " for E5).
    """

    lowercase: bool = False
    normalize_text: bool = False
    no_title: bool = False
    passage_prefix: str = ""
    query_prefix: str = ""

    def passage(self, passage: Record) -> str:
        """Title, a space, text, in the form the encoder reads."""
        title = "" if self.no_title else passage["title"]
        return self.passage_prefix + self._clean(f"{title} {passage['text']}" if title else passage["text"])

    def query(self, question: str) -> str:
        """A question in the form the encoder reads."""
        return self.query_prefix + self._clean(question)

    def _clean(self, text: str) -> str:
        text = text.lower() if self.lowercase else text
        return normalize_text(text) if self.normalize_text else text
