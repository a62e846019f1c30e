import unicodedata

import pytest
import regex
from conftest import each
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gainRAG.common.cli import UserError
from gainRAG.evaluation.recall import AnswerMatcher, has_answer, mark_hits, match_rule, recall_at, token_string

DPR_TOKEN = regex.compile(r"([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])", regex.IGNORECASE | regex.UNICODE | regex.MULTILINE)


def naive_tokens(text):
    return [match.group().lower() for match in DPR_TOKEN.finditer(unicodedata.normalize("NFD", text))]


def naive_has_answer(text, answers):
    tokens = naive_tokens(text)
    for answer in map(naive_tokens, answers):
        for start in range(len(tokens) - len(answer) + 1):
            if tokens[start : start + len(answer)] == answer:
                return True
    return False


PIECES = [
    "U.S.",
    "no",
    "know",
    "Σ",
    "ΑΣ",
    "ας",
    "σ",
    "é",
    "e\u0301",
    "\u0301",
    "İ",
    "ß",
    "ẞ",
    "東京",
    "-",
    "’",
    "'",
    ".",
    "_",
    "$",
    "²",
    "½",
    "K",
    "\u00ad",
    "\u200b",
    "\x00",
    "\u2028",
    "\u3000",
    " ",
    "\n",
    "1",
    "ﬁ",
    "😀",
    "🇫🇷",
]
TRICKY = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
TEXTS = st.one_of(st.text(max_size=60), TRICKY)


@given(TEXTS, st.lists(TEXTS, max_size=3))
@settings(max_examples=400)
@example("ΟΔΟΣ.", ["οδος"])
@example("ΑΣ'Β", ["ΑΣ"])
@example("", [""])
@example("x", ["\u200b"])
def test_has_answer_is_dprs_rule(text, answers):
    assert has_answer(text, answers) == naive_has_answer(text, answers)


@given(TEXTS, st.data())
@settings(max_examples=200)
def test_an_answer_cut_from_the_text_is_judged_alike(text, data):
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    answers = [data.draw(st.sampled_from([text[start:end], text[start:end].swapcase()]))]
    assert has_answer(text, answers) == naive_has_answer(text, answers)


def test_every_assigned_character_makes_dprs_tokens():
    for start in (*range(0, 0xD800, 64), *range(0xE000, 0x33480, 64), *range(0xE0000, 0xE0200, 64)):
        text = "".join(f"Ab{chr(code)}c {chr(code)}" for code in range(start, start + 64))
        assert token_string(text).split(" ")[1:-1] == naive_tokens(text)


@each(
    ("text", "answer", "found"),
    [
        ("I do not know.", "no", False),
        ("Is it? No!", "no", True),
        ("in the U.S. Senate", "U.S.", True),
        ("in the US Senate", "U.S.", False),
        ("in the U. S. Senate", "U.S.", True),
        ("Beyonce\u0301 sang", "BEYONCÉ", True),
        ("Beyonce sang", "Beyoncé", False),
        ("twenty-one pilots", "twenty one", False),
        ("twenty-one pilots", "Twenty - One", True),
        ("well-known", "known", True),
        ("snake_case", "snake", True),
        ("東京都です", "東京", False),
        ("東京、大阪", "東京", True),
        ("cost: $100 (net)", "$100", True),
        ("any text", ".*", False),
        ("f(x) = y", "(x)", True),
        ("aXb", "a.b", False),
        ("The cat", "cat", True),
        ("cat", "the cat", False),
        ("New\u00a0York\nCity", "new york city", True),
        ("soft\u00adhyphen", "softhyphen", False),
        ("", "x", False),
        ("anything", "\u200b", True),  # no token: DPR's loop finds it everywhere
    ],
)
def test_has_answer(text, answer, found):
    assert has_answer(text, [answer]) is found
    assert naive_has_answer(text, [answer]) is found


def test_matcher_takes_any_of_several_answers():
    matcher = AnswerMatcher(["Lyon", "Paris", "paris"])
    assert matcher.matches("He lives in PARIS.")
    assert not matcher.matches("He lives in Parish.")
    assert not AnswerMatcher([]).matches("He lives in Paris.")
    assert not has_answer("a b c", "abc")  # text stands for one answer, not for its letters
    assert has_answer("an abc", "abc")


def ranked(*hits):
    return {"id": "q", "ctxs": [{"text": "", "hasanswer": hit} for hit in hits]}


def test_recall_at():
    results = [ranked(True, False), ranked(False, False, True), ranked(False), ranked()]
    assert recall_at(iter(results), ks=(1, 2, 3)) == {1: 0.25, 2: 0.25, 3: 0.5}
    assert list(recall_at(results)) == [1, 5, 10, 20, 50, 100]


def test_recall_at_tells_what_is_missing():
    with pytest.raises(UserError, match=r"'q7': ctxs\[0\] lacks 'hasanswer'"):
        recall_at([{"id": "q7", "ctxs": [{"text": "x"}]}])
    with pytest.raises(UserError, match="at least one question"):
        recall_at([])


@each(
    ("text", "answer", "found"),
    [
        ("北京是中国的首都。", "北京", True),
        ("กรุงเทพมหานครเป็นเมืองหลวง", "กรุงเทพ", True),
        ("東京は２０２１年", "2021年", True),
        ("He lives in  PARIS", "in Paris", True),
        ("Beyonce\u0301 sang", "BEYONCÉ", True),
        ("北京是中国的首都。", "上海", False),
        ("I know", "no", True),
    ],
)
def test_characters_in_a_row(text, answer, found):
    assert AnswerMatcher([answer], "characters").matches(text) is found


def test_the_rule_is_noted_in_the_question():
    question = {"id": "q", "answers": ["北京"]}
    passages = [
        {"text": "北京是中国的首都。"},
        {"text": "北京是中国的首都。", "hasanswer": None},
        {"text": "", "hasanswer": True},
    ]
    assert [hit["hasanswer"] for hit in mark_hits(passages, question["answers"], match_rule(question))] == [
        False,
        False,
        True,
    ]
    question["answer_match"] = "characters"
    assert [hit["hasanswer"] for hit in mark_hits(passages, question["answers"], match_rule(question))] == [
        True,
        True,
        True,
    ]
    with pytest.raises(UserError, match="question 'q': field 'answer_match': 'words' is none of"):
        match_rule({**question, "answer_match": "words"})
