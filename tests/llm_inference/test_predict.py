"""Candidates keep what they bring along, and the task's own metric says which answers are right."""

from gainRAG.evaluation.recall import AnswerMatcher
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.llm_inference.predict import candidate, predict
from gainRAG.prompts import Prompts


class Speaker:
    """An engine that says the same of everything."""

    def __init__(self, text: str) -> None:
        self.text = text

    def generate(self, prompts, max_new_tokens, **_):
        return [self.text] * len(prompts)


def judge(task: str, text: str, answers: list[str], **question) -> float:
    record, passage = {"question": "Which?", "answers": answers, **question}, {"title": "", "text": "x"}
    builder = PromptBuilder(Prompts(), Prompts().task(task))
    predict(Speaker(text), builder, [(record, passage)], 8)
    assert passage["prediction"] == text
    return passage["EM_with_retrieval"]


def test_unknown_fields_of_a_passage_stay_and_measured_ones_do_not():
    passage = {"id": 3, "title": None, "text": "Paris", "score": 2.0, "hasanswer": None, "url": "u", "parts": [1]}
    measured = {"prediction": "x", "EM_with_retrieval": 1.0, "PPL_CD": 1.5}
    found = candidate({**passage, **measured, "selector_score": 0.5}, AnswerMatcher(["Paris"]))
    named = {"id": 3, "title": "", "text": "Paris", "has_answer": True, "retrieval_score": 2.0, "is_pseudo": False}
    assert found == {**named, "url": "u", "parts": [1], "selector_score": 0.5}
    assert list(found)[:6] == list(named)


def test_an_option_is_judged_by_accuracy_and_its_own_labels():
    assert judge("ARC_Challenge", "gibberish", ["A"]) == 0.0
    assert judge("ARC_Challenge", "The answer is A.", ["A"]) == 1.0
    choices = {"label": ["1", "2"], "text": ["gravity", "heat"]}
    assert judge("ARC_Challenge", "2", ["2"], choices=choices) == 1.0
    assert judge("ARC_Challenge", "2", ["1"], choices=choices) == 0.0
    assert judge("PubHealth", "The claim is not true, it is false", ["true"]) == 0.0


def test_an_open_answer_is_judged_by_containment_and_an_empty_one_covers_nothing():
    assert judge("HotpotQA", "It is Paris.", ["Rome", "Paris"]) == 1.0
    assert judge("HotpotQA", "anything", ["The", "!"]) == 0.0
