"""GainRAG: pick the passage that helps the language model, not the one that merely looks relevant."""

__version__ = "0.1.0"
