"""The typographic clean-up that Contriever's own code offers (Izacard et al., 2022)."""

# Character by character what Contriever's code does; the copy in GainRAG's public code leaves tildes as they are.
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
