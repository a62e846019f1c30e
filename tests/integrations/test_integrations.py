"""docs/integrations.md: each snippet picks what `Selector.select` picks, with the same scores or their sigmoids."""

import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SENTENCES, _saved, pair_tokenizer

from gainRAG.selector_engine.selector import Selector

PAGE = (REPOSITORY / "docs/integrations.md").read_text("utf-8")
START = re.search(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[1]
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
SIGMOIDS = ("LlamaIndex",)
heavy = pytest.mark.skipif(
    "INTEGRATIONS" not in os.environ, reason="heavy imports; scripts/test_integrations.sh runs it"
)
QUESTIONS = ["Who wrote the play Hamlet?", "Which river flows through Egypt to the sea?", "What is the capital?"]
PASSAGES = [  # every third is longer than 512 tokens, the last has no title
    {"id": f"p{number}", "title": sentence.split()[0], "text": " ".join([sentence] * (60 if number % 3 == 0 else 1))}
    for number, sentence in enumerate(SENTENCES)
] + [{"id": "untitled", "title": "", "text": "Hamlet is a play in five acts."}]


@pytest.fixture(scope="module")
def tiny_selector(tmp_path_factory) -> Path:
    """Folder of an XLM-RoBERTa cross-encoder with one logit; heads of 32, since vLLM's attention takes none smaller."""
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    torch.manual_seed(0)
    tokenizer = pair_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "vocab_size": len(tokenizer)}
    config = XLMRobertaConfig(
        **sizes, **ids, max_position_embeddings=514, type_vocab_size=1, num_labels=1, initializer_range=0.2
    )
    return _saved(tmp_path_factory.mktemp("selector"), XLMRobertaForSequenceClassification(config), tokenizer)


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def order(scores: np.ndarray) -> list[int]:
    return np.argsort(-scores, kind="stable").tolist()


def test_every_snippet_is_run():
    assert SNIPPETS.keys() == MODULES.keys()


@heavy
def test_another_text_or_length_has_other_picks(tiny_selector):
    """Else the comparison below would pass whatever a tool does."""
    own = Selector(str(tiny_selector), device="cpu")
    names = {"passages": PASSAGES}
    exec(START, names)
    wrong = {
        "no titles": (own, [passage["text"] for passage in PASSAGES]),
        "named titles": (own, [f"title: {passage['title']}\n{passage['text']}" for passage in PASSAGES]),
        "shorter": (Selector(str(tiny_selector), device="cpu", max_length=256), names["texts"]),
    }
    for what, (selector, texts) in wrong.items():
        pairs = [([(q, text) for text in names["texts"]], [(q, text) for text in texts]) for q in QUESTIONS]
        assert any(order(own.score(right)) != order(selector.score(other)) for right, other in pairs), what


@heavy
@pytest.mark.parametrize("tool", MODULES)
def test_same_picks_as_the_selector(tool, tiny_selector):
    if not installed(MODULES[tool]):
        pytest.skip(f"{MODULES[tool]} is not installed; see scripts/test_integrations.sh")
    folder = os.environ.get("SELECTOR") or str(tiny_selector)
    own = Selector(folder, device="cpu")
    cases = list(zip(QUESTIONS, (len(PASSAGES), 3, len(PASSAGES)), strict=True))
    for question, k in cases[:1] if tool == "vLLM" else cases:  # vLLM takes a minute to start
        names = {"folder": folder, "question": question, "passages": PASSAGES, "k": k}
        exec(compile(START + SNIPPETS[tool], f"docs/integrations.md: {tool}", "exec"), names)
        best = own.select(question, PASSAGES, k=k)
        assert names["picks"] == [passage["id"] for passage in best]
        if "scores" in names:
            logits = np.array([passage["selector_score"] for passage in best])
            expected = 1 / (1 + np.exp(-logits)) if tool in SIGMOIDS else logits
            np.testing.assert_allclose(names["scores"], expected, atol=1e-4)
