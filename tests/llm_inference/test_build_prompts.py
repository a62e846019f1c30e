"""Prompts as an LLM gets them: wording, chat template, and the cut of what is too long."""

import pytest
from conftest import causal_tokenizer

from gainRAG.common.cli import UserError
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.prompts import TASKS, Prompts

QUESTION = {"id": "q1", "question": "Where does the Seine flow, {and} why?", "answers": ["Paris"]}
WORDS = "Paris is the capital of France and lies on the river Seine; 東京 is the capital of 日本. 😀 "


@pytest.fixture(scope="module")
def tokenizer():
    return causal_tokenizer()


def builder(tokenizer=None, task="HotpotQA", **options):
    return PromptBuilder(Prompts(), TASKS[task], tokenizer, **options)


def passages(count: int, words: int = 1) -> list[dict]:
    return [{"title": f"T{number}", "text": f"{number}: {WORDS * words}"} for number in range(count)]


def test_a_chat_prompt_is_one_user_turn_in_the_template(tokenizer):
    prompt = builder(tokenizer).with_passages(QUESTION, passages(1))
    text = Prompts().with_passages.format(
        instruction=TASKS["HotpotQA"].instruction,
        label="Question",
        question=QUESTION["question"],
        evidence=f"T0\n0: {WORDS}".strip(),
    )
    assert prompt == f"<|user|>\n{text}<|end|>\n<|assistant|>\n"
    assert "{and}" in prompt


def test_a_base_model_gets_the_text_and_a_cue(tokenizer):
    base = builder(tokenizer, chat=False)
    assert base.without_passage(QUESTION).endswith(QUESTION["question"] + Prompts().base_model_cue)
    assert base.with_passages(QUESTION, passages(1)).endswith(Prompts().base_model_cue)
    assert base.background(QUESTION).endswith(QUESTION["question"] + "\n\n")
    assert "<|user|>" not in base.without_passage(QUESTION)


def test_a_server_gets_the_bare_text():
    bare = builder(max_tokens=3)
    assert bare.without_passage(QUESTION).endswith(QUESTION["question"])
    assert bare.with_passages(QUESTION, passages(1, 500)).count(WORDS.strip()) == 500
    assert bare.cut == 0


def test_options_and_label_of_a_task_are_shown(tokenizer):
    record = {**QUESTION, "choices": {"label": ["A", "B"], "text": ["sun", "moon"]}}
    assert "why?\nA: sun\nB: moon" in builder(tokenizer, "ARC_Challenge").without_passage(record)
    assert "\nClaim: Where" in builder(tokenizer, "PubHealth").without_passage(QUESTION)


def test_a_tokenizer_without_chat_template_is_refused():
    tokenizer = causal_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template; name a chat model, or pass --no_chat"):
        builder(tokenizer)
    assert builder(tokenizer, chat=False).without_passage(QUESTION)
    assert builder(None).without_passage(QUESTION)


def test_every_limit_cuts_the_passage_and_never_the_question(tokenizer):
    """One passage of Latin, CJK and emoji: the cut falls inside characters of several tokens, too."""
    passage = passages(1)

    def length(prompt):
        return len(tokenizer(prompt, add_special_tokens=False).input_ids)

    free = builder(tokenizer)
    whole, bare = free.with_passages(QUESTION, passage), free.without_passage(QUESTION)
    seen = set()
    for limit in range(length(bare), length(whole) + 1):
        limited = builder(tokenizer, max_tokens=limit)
        prompt = limited.with_passages(QUESTION, passage)
        assert length(prompt) <= limit
        assert limited.cut == (limit < length(whole))
        assert QUESTION["question"] + "<|end|>" in prompt
        if "Passage: " in prompt:
            evidence = prompt.split("Passage: ")[1].split("\n\nQuestion: ")[0]
            assert f"T0\n0: {WORDS}".startswith(evidence)
            seen.add(len(evidence))
        else:
            assert prompt == bare
    assert len(seen) > 20


def test_the_last_passages_go_first(tokenizer):
    free = builder(tokenizer)
    three, two, one = (free.with_passages(QUESTION, passages(count, 2)) for count in (3, 2, 1))
    limit = len(tokenizer(two, add_special_tokens=False).input_ids)
    limited = builder(tokenizer, max_tokens=limit)
    assert limited.with_passages(QUESTION, passages(3, 2)).startswith(two[:-60])
    shorter = builder(tokenizer, max_tokens=limit - 20).with_passages(QUESTION, passages(3, 2))
    assert "[1] T0\n0: " + (WORDS * 2).strip() in shorter
    assert "[2] T1\n1: Paris is the capital" in shorter
    assert "[3]" not in shorter
    assert len(one) < len(shorter) < len(two) < len(three)


def test_cut_prompts_are_counted(tokenizer):
    limited = builder(tokenizer, max_tokens=150)
    for words in (1, 9, 1, 90, 900):
        limited.with_passages(QUESTION, passages(1, words))
    assert limited.cut == 3


@pytest.mark.parametrize("kind", ["with_passages", "without_passage", "background"])
def test_a_question_that_does_not_fit_is_named(tokenizer, kind):
    limited = builder(tokenizer, max_tokens=100)
    record = {**QUESTION, "question": "Why so long? " * 500}
    arguments = [record, passages(2)] if kind == "with_passages" else [record]
    with pytest.raises(UserError, match=r"question 'q1' \(Why so long.*tokens longer than the 100"):
        getattr(limited, kind)(*arguments)
