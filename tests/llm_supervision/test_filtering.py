"""The filter that answers afresh from the best passage."""

import json
import sys

import pytest
from conftest import SENTENCES

from gainRAG.common.cli import UserError
from gainRAG.common.settings import settings_file
from gainRAG.evaluation.answers import cover_exact_match, f1_score
from gainRAG.llm_inference import engine as engines
from gainRAG.llm_inference.engine import EngineOptions
from gainRAG.llm_inference.inference_hf import HFEngine
from gainRAG.llm_supervision import filtering


def passage(ppl: float, right: float | None = None, text: str = "x", **more) -> dict:
    stored = {} if right is None else {"EM_with_retrieval": right}
    return {"id": 1, "title": "T", "text": text, "PPL_CD": ppl, "retrieved_ppl": 100 - ppl, **stored, **more}


def question(number: int, *passages: dict) -> dict:
    return {"id": number, "question": f"Where, {number}?", "answers": ["Paris"], "passages": list(passages)}


@pytest.fixture
def answer_afresh(monkeypatch, tiny_llama, tmp_path):
    def run(data_path, *more):
        path = tmp_path / "kept.jsonl"
        arguments = [
            "--data_path",
            data_path,
            "--output_path",
            path,
            "--task",
            "HotpotQA",
            "--lm_type",
            tiny_llama,
            "--dtype",
            "float32",
            "--device",
            "cpu",
            "--max_new_tokens",
            5,
            *more,
        ]
        monkeypatch.setattr(sys, "argv", ["filtering", *map(str, arguments)])
        filtering.main()
        return path

    return run


@pytest.fixture
def gains(write_jsonl, tiny_llama):
    """Questions without predictions; the gold answer of every other is what the LLM says from the best passage."""
    from conftest import causal_tokenizer

    from gainRAG.llm_inference.build_prompts import PromptBuilder
    from gainRAG.prompts import Prompts

    builder = PromptBuilder(Prompts(), Prompts().task("HotpotQA"), causal_tokenizer())
    engine = HFEngine(EngineOptions(str(tiny_llama), device="cpu", dtype="float32"))
    records = [question(n, passage(5, text=SENTENCES[n]), passage(2, text=SENTENCES[n + 1])) for n in range(6)]
    for record in records:
        record["answers"] = ["Quixotry"]
    said = engine.generate([builder.with_passages(record, record["passages"][1:]) for record in records], 5)
    for record, text in list(zip(records, said, strict=True))[::2]:
        record["answers"] = ["nothing like it", text]
    assert [cover_exact_match(text, record["answers"]) for record, text in zip(records, said, strict=True)] == [
        True,
        False,
    ] * 3
    return write_jsonl("gains.jsonl", [*records, question(6)])


def test_answering_afresh_keeps_what_the_llm_gets_right(answer_afresh, gains, read_jsonl, caplog, monkeypatch):
    monkeypatch.setattr(filtering, "CHUNK", 4)
    settings_file(gains).write_text('{"flags": {"weights": "another", "task": "ASQA", "prompts": "beef"}}')
    with caplog.at_level("INFO"):
        path = answer_afresh(gains)
    kept = read_jsonl(path)
    assert [record["id"] for record in kept] == [0, 2, 4]
    for what in ("another LLM", "another task", "other prompts"):
        assert f"{gains}: gains of {what} than this run has (" in caplog.text
    assert "kept 3 of 7 questions (3 answered wrongly, best passage lacks the answer; 1 without any" in caplog.text
    for record in kept:
        other, best = record["passages"]
        assert "prediction" not in other
        assert best["EM_with_retrieval"] == 1.0
        assert best["F1_with_retrieval"] == f1_score(best["prediction"], record["answers"])
    former = path.read_bytes()
    monkeypatch.setattr(engines, "load_engine", lambda *_: pytest.fail("the LLM was loaded again"))
    assert answer_afresh(gains).read_bytes() == former
    with pytest.raises(UserError, match="max_new_tokens: 5 then, 6 now"):
        answer_afresh(gains, "--max_new_tokens", 6)


def test_an_option_is_judged_by_accuracy(answer_afresh, write_jsonl, read_jsonl):
    """By containment every text holds the gold answer "A", which normalises to nothing."""
    options = {"answers": ["A"], "choices": {"label": ["A", "B"], "text": ["air", "bone"]}}
    data = write_jsonl("arc.jsonl", [{**question(n, passage(5, text=SENTENCES[n])), **options} for n in range(4)])
    assert read_jsonl(answer_afresh(data, "--task", "ARC_Challenge")) == []
    with pytest.raises(UserError, match="--keep answerable: answers of ARC_Challenge are options"):
        answer_afresh(data, "--task", "ARC_Challenge", "--keep", "answerable", "--overwrite")
    with pytest.raises(UserError, match="--keep holds: needs no answers; data/data_filter.py"):
        answer_afresh(data, "--task", "ARC_Challenge", "--keep", "holds", "--overwrite")


def test_without_the_llms_own_passage_the_best_retrieved_one_decides(answer_afresh, write_jsonl, read_jsonl, tmp_path):
    own = passage(1, text="own", is_pseudo=True)
    data = write_jsonl("gains.jsonl", [question(0, own, passage(2)), question(1, own)])
    answer_afresh(data, "--no_pseudo")
    first, second = read_jsonl(tmp_path / "kept.predictions.jsonl")
    assert ["prediction" in candidate for candidate in first["passages"]] == [False, True]
    assert second["passages"] == [own]


def test_a_question_too_long_alone_is_found_before_any_model_loads(answer_afresh, write_jsonl, read_jsonl, monkeypatch):
    long = {**question(1, passage(1)), "question": "Which of the two rivers? " * 400}
    data = write_jsonl("long.jsonl", [question(0, passage(1)), long])
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"long\.jsonl:2: field 'question': question 1 "),
    ):
        patch.setattr(engines, "load_engine", lambda *_: pytest.fail("the LLM was loaded"))
        answer_afresh(data)
    answer_afresh(data, "--skip_too_long")
    long["answers"] = ["x"]
    with pytest.raises(UserError, match="all 1 questions are too long for the LLM; smaller --background_tokens or"):
        answer_afresh(write_jsonl("all.jsonl", [long]), "--skip_too_long", "--overwrite")


def test_an_interrupted_run_ends_with_the_same_bytes(answer_afresh, gains, tmp_path, monkeypatch):
    monkeypatch.setattr(filtering, "CHUNK", 2)
    whole = answer_afresh(gains).read_bytes()
    for file in tmp_path.glob("kept*"):
        file.unlink()
    append = filtering.StageOutput.append

    def stops(self, records):
        for record in records:
            if record["id"] == 3:
                raise KeyboardInterrupt
            append(self, [record])

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(filtering.StageOutput, "append", stops)
        answer_afresh(gains)
    assert not (tmp_path / "kept.jsonl").exists()
    assert answer_afresh(gains).read_bytes() == whole


def test_mistakes_are_named_before_any_model_loads(answer_afresh, write_jsonl, monkeypatch):
    monkeypatch.setattr(engines, "load_engine", lambda *_: pytest.fail("the LLM was loaded"))
    good = question(0, passage(1))
    bare = json.loads(json.dumps(good))
    del bare["passages"][0]["PPL_CD"]
    with pytest.raises(UserError, match=r"a\.jsonl:2: field 'passages\[0\]\.PPL_CD': missing"):
        answer_afresh(write_jsonl("a.jsonl", [good, bare]))
    with pytest.raises(UserError, match="neither a model folder"):
        answer_afresh(write_jsonl("b.jsonl", [good]), "--lm_type", "nothing")
