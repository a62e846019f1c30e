"""docs/integrations.md: each snippet picks what `Selector.select` picks, with the same scores or their sigmoids."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, _saved, pair_tokenizer

from gainRAG.selector_engine.selector import Selector

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "integrations.md").read_text("utf-8")
SNIPPETS = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
MODULES = {
    "sentence-transformers": "sentence_transformers",
    "FlagEmbedding": "FlagEmbedding",
    "FlashRAG": "flashrag",
    "LangChain": "langchain_classic",
    "LlamaIndex": "llama_index.postprocessor.sbert_rerank",
    "Haystack": "haystack_integrations.components.rankers.sentence_transformers",
    "vLLM": "vllm",
}
QUESTIONS = ["Who wrote the play Hamlet?", "Which river flows through Egypt to the sea?", "What is the capital?"]
PASSAGES = [
    {"id": str(number), "title": sentence.split()[0], "text": " ".join([sentence] * (60 if number % 3 == 0 else 1))}
    for number, sentence in enumerate(SENTENCES)
]


@pytest.fixture(scope="module")
def selector(tmp_path_factory) -> Path:
    """Folder of an XLM-RoBERTa cross-encoder with one logit; heads of 32, since vLLM's attention takes none smaller."""
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    torch.manual_seed(0)
    tokenizer = pair_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "vocab_size": len(tokenizer)}
    config = XLMRobertaConfig(
        **sizes, **ids, max_position_embeddings=514, type_vocab_size=1, num_labels=1, initializer_range=0.1
    )
    return _saved(tmp_path_factory.mktemp("selector"), XLMRobertaForSequenceClassification(config), tokenizer)


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_every_snippet_is_run():
    assert SNIPPETS.keys() == MODULES.keys()


@pytest.mark.parametrize("tool", MODULES)
def test_same_picks_as_the_selector(tool, selector):
    if not installed(MODULES[tool]):
        pytest.skip(f"{MODULES[tool]} is not installed; scripts/test_integrations.sh installs it")
    own = Selector(str(selector), device="cpu")
    assert max(len(own.tokenizer(p["text"])["input_ids"]) for p in PASSAGES) > 512  # some are cut
    for question in QUESTIONS[:1] if tool == "vLLM" else QUESTIONS:
        names = {"folder": str(selector), "question": question, "passages": PASSAGES}
        exec(compile(SNIPPETS[tool], f"docs/integrations.md: {tool}", "exec"), names)
        best = own.select(question, PASSAGES, k=3)
        assert names["picks"] == [passage["id"] for passage in best]
        if "scores" in names:
            logits = np.array([passage["selector_score"] for passage in best])
            sigmoid = tool in ("LlamaIndex", "vLLM")
            expected = 1 / (1 + np.exp(-logits)) if sigmoid else logits
            assert np.allclose(names["scores"], expected, atol=1e-4), (names["scores"], expected)
