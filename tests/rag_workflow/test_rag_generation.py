"""rag_generation on a tiny LLM: prompts, scores, metrics, resumption, and mistakes."""

import json
import sys

import pytest
from conftest import SENTENCES, causal_tokenizer

from gainRAG.common import resume
from gainRAG.common.cli import UserError
from gainRAG.evaluation import results
from gainRAG.evaluation.answers import score_prediction
from gainRAG.llm_inference import engine as engines
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.llm_inference.engine import EngineOptions
from gainRAG.llm_inference.inference_hf import HFEngine
from gainRAG.prompts import Prompts, load_prompts
from gainRAG.rag_workflow import rag_generation


def made_selection(count: int = 6, **more) -> list[dict]:
    def question(n):
        ctxs = [{"id": k, "title": f"T{k}", "text": SENTENCES[(n + k) % 8], "selector_score": -k} for k in range(3)]
        return {"id": f"q{n}", "question": f"Which, {n}?", "answers": ["Paris", "the"], "level": "easy", "ctxs": ctxs}

    return [{**question(n), **more} for n in range(count)]


@pytest.fixture
def generate(monkeypatch, tiny_llama, tmp_path):
    def run(data_path, *more, output="predictions.jsonl", task="HotpotQA"):
        arguments = [
            "--data_path",
            data_path,
            "--task",
            task,
            "--lm_type",
            tiny_llama,
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--max_new_tokens",
            6,
            *more,
        ]
        if output:
            arguments += ["--output_path", tmp_path / output]
        monkeypatch.setattr(sys, "argv", ["rag_generation", *map(str, arguments)])
        rag_generation.main()
        return tmp_path / (output or "")

    return run


@pytest.fixture(scope="module")
def said(tiny_llama):
    """What the tiny LLM says to one prompt."""
    engine = HFEngine(EngineOptions(str(tiny_llama), device="cpu", dtype="float32"))
    return lambda prompt: engine.generate([prompt], 6)[0]


@pytest.mark.parametrize("k", [1, 2])
def test_records_hold_prompt_prediction_and_scores(generate, write_jsonl, read_jsonl, said, k):
    selection = made_selection()
    rows = read_jsonl(generate(write_jsonl("selected.jsonl", selection), "--K_docs", k))
    builder = PromptBuilder(Prompts(), Prompts().task("HotpotQA"), causal_tokenizer())
    for row, record in zip(rows, selection, strict=True):
        prompt = builder.with_passages(record, record["ctxs"][:k])
        prediction = said(prompt)
        kept = {name: record[name] for name in ("id", "question", "answers")}
        scores = score_prediction(prediction, record["answers"])
        assert row.pop("trouble", "") in ("", "length")  # six tokens seldom suffice
        assert row == {**kept, "prompt": prompt, "prediction": prediction, **scores, "level": "easy"}
        assert {"cover_em", "em", "f1"} <= row.keys()


def test_a_questions_other_fields_pass_through_unless_the_output_has_them(generate, write_jsonl, read_jsonl):
    more = {"metadata": {"hops": [2, None]}, "em": "theirs", "accuracy": "theirs", "trouble": "theirs"}
    [row] = read_jsonl(generate(write_jsonl("selected.jsonl", made_selection(1, **more))))
    assert row["metadata"] == {"hops": [2, None]} and row["level"] == "easy"
    assert row["em"] in (0.0, 1.0)
    assert not row.keys() & {"accuracy", "ctxs"} and row.get("trouble") != "theirs"


def test_answers_that_went_wrong_are_marked_and_counted(generate, write_jsonl, read_jsonl, monkeypatch):
    whole = HFEngine.generate

    def troubled(self, prompts, max_new_tokens):
        texts = whole(self, prompts, max_new_tokens)
        self.troubles = ["thought" if "Which, 1?" in prompt else "" for prompt in prompts]
        return texts

    monkeypatch.setattr(HFEngine, "generate", troubled)
    path = generate(write_jsonl("selected.jsonl", made_selection(3)))
    assert [row.get("trouble") for row in read_jsonl(path)] == [None, "thought", None]
    assert json.loads(path.with_suffix(".metrics.json").read_text())["troubles"] == {"thought": 1}


def test_metrics_are_means_of_the_records(generate, write_jsonl, read_jsonl, capsys):
    path = generate(write_jsonl("selected.json.jsonl", made_selection()), "--seed", 3)
    rows, metrics = read_jsonl(path), json.loads(path.with_suffix(".metrics.json").read_text())
    for name in ("cover_em", "em", "f1"):
        assert metrics["metrics"][name]["mean"] == pytest.approx(sum(row[name] for row in rows) / 6)
        assert 0 <= metrics["metrics"][name]["low"] <= metrics["metrics"][name]["high"] <= 1
    assert metrics["questions"] == 6
    assert metrics["seed"] == 3
    assert metrics["prompts_hash"] == Prompts().hash()
    assert metrics["split"] == "HotpotQA (selected.json.jsonl)"
    assert {"versions", "git_commit", "model", "suspect_answers"} <= metrics.keys()
    assert "HotpotQA: 6 questions" in capsys.readouterr().out


def test_option_tasks_show_options_and_score_accuracy(generate, write_jsonl, read_jsonl, capsys):
    choices = {"label": ["A", "B"], "text": ["sun", "moon"]}
    selection = write_jsonl("arc.jsonl", made_selection(2, answers=["B"], choices=choices))
    path = generate(selection, task="ARC_Challenge")
    for row in read_jsonl(path):
        assert "A: sun\nB: moon" in row["prompt"]
        assert row["accuracy"] in (0.0, 1.0)
    assert "accuracy" in json.loads(path.with_suffix(".metrics.json").read_text())["metrics"]
    assert "accuracy" in capsys.readouterr().out


def test_a_wording_file_replaces_the_prompt(generate, write_jsonl, read_jsonl, tmp_path):
    wording = tmp_path / "prompts.yaml"
    wording.write_text("with_passages: 'GIVEN {evidence} SAY {question}'\ntasks: {Quiz: {instruction: x}}\n")
    path = generate(write_jsonl("s.jsonl", made_selection(1)), "--prompts", wording, "--no_chat", task="Quiz")
    assert read_jsonl(path)[0]["prompt"] == f"GIVEN T0\n{SENTENCES[0]} SAY Which, 0?{Prompts().base_model_cue}"
    metrics = json.loads(path.with_suffix(".metrics.json").read_text())
    assert metrics["prompts_hash"] == load_prompts(wording).hash() != Prompts().hash()


def test_the_output_stands_beside_the_input_by_default(generate, write_jsonl, tmp_path):
    generate(write_jsonl("selected.jsonl", made_selection(2)), "--limit", 1, output=None)
    assert len((tmp_path / "selected.predictions.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "selected.predictions.metrics.json").exists()


def stops_at(name: str):
    """A `line_of` that is interrupted when the named record would be written."""

    def line_of(record):
        if record["id"] == name:
            raise KeyboardInterrupt
        return json.dumps(record, ensure_ascii=False)

    return line_of


@pytest.mark.parametrize("stop", [0, 3, 5])
def test_an_interrupted_run_ends_with_the_same_bytes(generate, write_jsonl, monkeypatch, tmp_path, stop):
    monkeypatch.setattr(results, "git_commit", lambda: "0")  # someone may commit meanwhile
    monkeypatch.setattr(rag_generation, "CHUNK", 2)
    data = write_jsonl("selected.jsonl", made_selection())
    whole = generate(data, output="whole.jsonl")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume, "line_of", stops_at(f"q{stop}"))
        generate(data)
    assert not (tmp_path / "predictions.jsonl").exists()
    path = generate(data)
    assert path.read_bytes() == whole.read_bytes()
    assert path.with_suffix(".metrics.json").read_bytes() == whole.with_suffix(".metrics.json").read_bytes()


def test_an_output_that_would_replace_its_input_is_refused(generate, write_jsonl, tmp_path):
    data = write_jsonl("selected.jsonl", made_selection(2))
    former = data.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="would replace its own input"):
        generate(data, "--overwrite", output="link/selected.jsonl")
    assert data.read_bytes() == former


def test_a_complete_output_is_taken_as_it_is(generate, write_jsonl, monkeypatch):
    data = write_jsonl("selected.jsonl", made_selection(2))
    former = generate(data).read_bytes()
    monkeypatch.setattr(engines, "load_engine", lambda *_: pytest.fail("the LLM was loaded again"))
    assert generate(data).read_bytes() == former
    with pytest.raises(UserError, match="K_docs: 1 then, 2 now"):
        generate(data, "--K_docs", 2)


def test_mistakes_are_named_before_any_model_loads(generate, write_jsonl, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(engines, "load_engine", lambda *_: pytest.fail("the LLM was loaded"))
    selection = made_selection(3)
    data = write_jsonl("selected.jsonl", selection)
    del selection[2]["ctxs"][1]["text"]
    with pytest.raises(UserError, match=r"a\.jsonl:3: field 'ctxs\[1\]'"):
        generate(write_jsonl("a.jsonl", selection))
    with pytest.raises(UserError, match="no question has a passage in its 'ctxs'"):
        generate(write_jsonl("b.jsonl", made_selection(2, ctxs=[])))
    with pytest.raises(UserError, match=r"c\.jsonl:1: field 'choices'"):
        generate(write_jsonl("c.jsonl", made_selection(1, choices={"label": ["A"], "text": []})))
    with pytest.raises(UserError, match="--task Hotpot: unknown"):
        generate(data, task="Hotpot")
    with pytest.raises(UserError, match="no such file"):
        generate("gone.jsonl")
    with pytest.raises(UserError, match="neither a model folder"):
        generate(data, "--lm_type", "nothing")
    for flags in (["--K_docs", 0], ["--K_docs", -1], ["--limit", 0], ["--temperature", -1], ["--max_new_tokens", 0]):
        with pytest.raises(SystemExit) as refused:
            generate(data, *flags)
        assert refused.value.code == 2
    assert not list(tmp_path.glob("predictions*"))


def test_a_question_beyond_the_context_is_named_before_any_model_loads_or_left_out(
    generate, write_jsonl, read_jsonl, monkeypatch, caplog
):
    selection = made_selection(3)
    selection[1]["question"] = "Which? " * 1500
    data = write_jsonl("selected.jsonl", selection)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"selected\.jsonl:2: .*'q1'.*--skip_too_long"):
        patch.setattr(engines, "load_engine", lambda *_: pytest.fail("the LLM was loaded"))
        generate(data)
    path = generate(data, "--skip_too_long")
    assert [row["id"] for row in read_jsonl(path)] == ["q0", "q2"]
    metrics = json.loads(path.with_suffix(".metrics.json").read_text())
    assert (metrics["questions"], metrics["too_long"]) == (2, 1)
    assert "1 questions are too long for the LLM and are left out" in caplog.text
    former = path.read_bytes()
    assert generate(data, "--skip_too_long").read_bytes() == former
    with pytest.raises(UserError, match="all 1 questions are too long"):
        generate(write_jsonl("one.jsonl", selection[1:2]), "--skip_too_long", output="one.out.jsonl")


def test_a_question_without_passages_is_answered_without_one(generate, write_jsonl, read_jsonl, caplog):
    selection = made_selection(3)
    selection[1]["ctxs"] = []
    answered = read_jsonl(generate(write_jsonl("some.jsonl", selection)))
    assert len(answered) == 3
    assert "Passage:" in answered[0]["prompt"] and "Passage:" not in answered[1]["prompt"]
    assert "1 of 3 questions have no passage and are answered without one" in caplog.text


def test_fewer_passages_than_wanted_are_counted(generate, write_jsonl, caplog):
    with caplog.at_level("INFO"):
        generate(write_jsonl("selected.jsonl", made_selection(2)), "--K_docs", 9)
    assert "2 of 2 questions have fewer than 9 passages (--K_docs)" in caplog.text
