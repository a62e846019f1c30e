"""What counts of a text: what follows the last thought, an empty text where a thought never ends."""

from conftest import byte_level_tokenizer, each
from transformers import PreTrainedTokenizerFast

from gainRAG.evaluation.answers import score_prediction, without_thoughts
from gainRAG.llm_inference.background import pseudo_passage
from gainRAG.llm_inference.written_text import decode_texts, opens_thought


@each(
    ("text", "kept"),
    [
        ("<think>\nLyon or Paris? Not Lyon.\n</think>\n\nMarseille", "Marseille"),
        ("Lyon or Paris?\n</think>\nMarseille", "Marseille"),
        ("<think>a</think> Lyon <think>b</think> Marseille ", "Marseille"),
        ("[THINK]Lyon[/THINK]Marseille", "Marseille"),
        (
            "<|channel|>analysis<|message|>Lyon<|end|><|start|>assistant<|channel|>final<|message|>Marseille",
            "Marseille",
        ),
        ("<think></think>", ""),
        ("Think: Marseille < Lyon", "Think: Marseille < Lyon"),
        ("<think> Lyon, or perhaps", None),
        ("Marseille <think> or", None),
        ("<think>a</think> Lyon <think> or", None),
        ("<|channel|>analysis<|message|>Lyon", None),
    ],
)
def test_what_follows_the_last_thought_counts(text, kept):
    assert without_thoughts(text) == ((kept, False) if kept is not None else ("", True))


def test_a_prompt_may_open_the_thought():
    assert opens_thought("<|assistant|>\n<think>\n")
    assert not opens_thought("<|assistant|>\n<think>\n\n</think>\n\n")
    assert without_thoughts("Lyon, or perhaps", thinking=True) == ("", True)
    assert without_thoughts("Lyon</think>Marseille", thinking=True) == ("Marseille", False)


def test_thoughts_earn_nothing():
    text, _ = without_thoughts("<think>\nLyon or Paris? Not Lyon.\n</think>\n\nMarseille")
    assert score_prediction(text, ["Paris"])["cover_em"] == 0
    assert pseudo_passage(without_thoughts("I am unsure.\n</think>\n\nN/A")[0]) is None


def test_marks_that_are_special_tokens_are_seen():
    special = ["<pad>", "<end>", "[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|start|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(special), eos_token="<end>", additional_special_tokens=special[2:]
    )
    texts = [
        "[THINK]Lyon[/THINK]Marseille<end>",
        "<|channel|>analysis<|message|>Lyon<|start|>assistant<|channel|>final<|message|>Marseille<end>",
        "Marseille<end>",
        "[THINK]Lyon<end>",
    ]
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    kept = [without_thoughts(text) for text in decode_texts(tokenizer, rows)]
    assert kept == [("Marseille", False)] * 3 + [("", True)]
    assert decode_texts(tokenizer, []) == []
