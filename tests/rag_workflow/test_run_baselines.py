"""The methods side by side: what each one picks, the columns by hand, shared prompts, resumption, and mistakes."""

import json
import math
import sys

import pytest

from gainRAG.common import resume
from gainRAG.common.cli import UserError
from gainRAG.evaluation import results
from gainRAG.llm_inference import engine as engines
from gainRAG.llm_inference.inference_hf import HFEngine
from gainRAG.rag_workflow import run_baselines
from gainRAG.rag_workflow.picks import explained

TEXTS = ["Paris lies on the Seine.", "Berlin lies on the Spree.", "The Nile is long.", "It is Paris, I think."]
PPLS = [3.0, 7.0, 15.0, 1.0]


def passage(rank: int) -> dict:
    if rank == 3:
        return {"id": "pseudo", "title": "", "text": TEXTS[3], "score": None, "is_pseudo": True}
    return {"id": rank, "title": f"T{rank}", "text": TEXTS[rank], "score": -rank, "is_pseudo": False}


def made(count: int, *ranks: int) -> list[dict]:
    """Questions with passages in this order."""
    return [
        {"id": n, "question": f"Which, {n}?", "answers": ["Paris"], "ctxs": [passage(rank) for rank in ranks]}
        for n in range(count)
    ]


def gains(count: int) -> list[dict]:
    """Passage `rank` of question n has PPL_CD PPLS[rank] + n."""

    def scored(n):
        return [{**passage(rank), "PPL_CD": PPLS[rank] + n, "retrieved_ppl": 2.0} for rank in range(4)]

    return [{"id": n, "question": f"Which, {n}?", "answers": ["Paris"], "passages": scored(n)} for n in range(count)]


@pytest.fixture
def files(write_jsonl):
    """The flags that name data, gains and selections of four questions."""
    selections = {"rerank": [1], "gainrag_no_pseudo": [0], "gainrag": [3, 0]}
    named = [f"{name}={write_jsonl(f'{name}.jsonl', made(4, *ranks)[::-1])}" for name, ranks in selections.items()]
    return [
        "--data_path",
        write_jsonl("retrieved.jsonl", made(4, 0, 1, 2)),
        "--gains_path",
        write_jsonl("gains.jsonl", gains(4)),
        "--selections",
        *named,
    ]


@pytest.fixture
def run(monkeypatch, tiny_llama, tmp_path):
    def run(flags, *more, output="out"):
        arguments = [
            *flags,
            "--output_dir",
            tmp_path / output,
            "--task",
            "NaturalQA",
            "--lm_type",
            tiny_llama,
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--max_new_tokens",
            5,
            *more,
        ]
        monkeypatch.setattr(sys, "argv", ["run_baselines", *map(str, arguments)])
        run_baselines.main()
        return tmp_path / output

    return run


def test_columns_are_what_one_computes_by_hand(run, files, read_jsonl, capsys):
    folder = run(files)
    results = json.loads((folder / "results.json").read_text())
    picks = {"standard_rag": 0, "rerank": 1, "gainrag_no_pseudo": 0, "gainrag": 3, "best_by_gain": 3}
    assert list(results) == ["no_retrieval", "standard_rag", "rerank", "gainrag_no_pseudo", "gainrag", "best_by_gain"]
    assert results["no_retrieval"]["picks"] == {}
    for method, rank in picks.items():
        found = results[method]["picks"]
        assert found["hit_at_1"]["mean"] == float("Paris" in TEXTS[rank])
        assert found["pseudo_share"]["mean"] == float(rank == 3)
        expected = sum(-math.log(PPLS[rank] + n + 1) for n in range(4)) / 4
        assert found["pick_gain"]["mean"] == pytest.approx(expected)
        rows = read_jsonl(folder / f"{method}.jsonl")
        assert [row["id"] for row in rows] == [0, 1, 2, 3]
        assert all(TEXTS[rank] in row["prompt"] for row in rows)
        for name in ("cover_em", "em", "f1"):
            assert results[method]["metrics"][name]["mean"] == pytest.approx(sum(row[name] for row in rows) / 4)
    assert not any(text in row["prompt"] for row in read_jsonl(folder / "no_retrieval.jsonl") for text in TEXTS)
    shown = capsys.readouterr().out
    assert shown.strip() == (folder / "results.md").read_text().strip()
    assert all(explained(method) in shown for method in results)
    assert "Selector trained on plain perplexity" not in shown


def test_accuracy_stands_under_its_own_name(run, write_jsonl, capsys, caplog):
    caplog.set_level("INFO")
    questions = [
        {**record, "answers": ["A"], "choices": {"label": ["A", "B"], "text": ["x", "y"]}} for record in made(2, 0)
    ]
    run(["--data_path", write_jsonl("arc.jsonl", questions)], "--task", "ARC_Challenge", "--methods", "standard_rag")
    header = capsys.readouterr().out.splitlines()[2]
    assert [name.strip() for name in header.split("|")[1:4]] == ["method", "accuracy", "em"]
    assert "answers and table: " in caplog.text and "next: " not in caplog.text  # one method, nothing to compare


def test_questions_beyond_the_context_are_left_out_of_every_method(run, write_jsonl, read_jsonl):
    questions = made(3, 0, 1)
    questions[1]["question"] = "Which? " * 1500
    flags = ["--data_path", write_jsonl("retrieved.jsonl", questions)]
    with pytest.raises(UserError, match=r"retrieved\.jsonl:2: "):
        run(flags)
    folder = run(flags, "--skip_too_long")
    for method in ("no_retrieval", "standard_rag"):
        assert [row["id"] for row in read_jsonl(folder / f"{method}.jsonl")] == [0, 2]
        assert json.loads((folder / "results.json").read_text())[method]["too_long"] == 1


def test_a_shared_prompt_is_answered_once(run, files, monkeypatch, read_jsonl):
    asked, generate = [], HFEngine.generate

    def spied(self, prompts, max_new_tokens):
        asked.extend(prompts)
        return generate(self, prompts, max_new_tokens)

    monkeypatch.setattr(HFEngine, "generate", spied)
    folder = run(files)
    prompts = {row["prompt"] for file in folder.glob("*.jsonl") for row in read_jsonl(file)}
    assert len(asked) == len(prompts) == 4 * 4  # no passage, the first, the second, the pseudo-passage
    assert set(asked) == prompts


def test_methods_read_the_same_prompt_with_k_passages(run, files, read_jsonl):
    folder = run(files, "--K_docs", 2, "--methods", "gainrag", "standard_rag")
    [gainrag, *_], [standard, *_] = (read_jsonl(folder / f"{name}.jsonl") for name in ("gainrag", "standard_rag"))
    assert f"[1] \n{TEXTS[3]}\n\n[2] T0\n{TEXTS[0]}" in gainrag["prompt"]
    assert f"[1] T0\n{TEXTS[0]}\n\n[2] T1\n{TEXTS[1]}" in standard["prompt"]
    assert list(json.loads((folder / "results.json").read_text())) == ["gainrag", "standard_rag"]


def test_a_selection_for_fewer_passages_is_refused(run, files):
    with pytest.raises(UserError, match=r"rerank\.jsonl: holds 1 passages a question, --K_docs 2 wants more"):
        run(files, "--K_docs", 2, "--methods", "rerank")


def test_a_question_without_passages_holds_no_answer_and_is_no_missing_gain(run, files, write_jsonl, caplog, capsys):
    retrieved = made(4, 0, 1, 2)
    retrieved[2]["ctxs"] = []
    changed = [files[0], write_jsonl("some.jsonl", retrieved), *files[2:]]
    results = json.loads((run(changed, "--methods", "standard_rag", "gainrag") / "results.json").read_text())
    assert results["standard_rag"]["picks"]["hit_at_1"]["mean"] == 0.75
    gains_of_others = [-math.log(PPLS[0] + n + 1) for n in (0, 1, 3)]
    assert results["standard_rag"]["picks"]["pick_gain"]["mean"] == pytest.approx(sum(gains_of_others) / 3)
    assert results["standard_rag"]["without_pick"] == 1 and "without_pick" not in results["gainrag"]
    shown = capsys.readouterr().out
    assert ", 1 without a pick |" in shown
    differences = [-math.log(PPLS[3] + n + 1) - gain for n, gain in zip((0, 1, 3), gains_of_others, strict=True)]
    assert f"gain ({sum(differences) / 3:+.3f}, " in shown  # of the questions that both have a pick for
    assert "standard_rag: 1 questions have no pick; the mean gain is that of the others" in caplog.text
    assert "among the scored passages" not in caplog.text
    assert "1 of 4 questions have no passage" in caplog.text


def test_gains_of_another_llm_task_or_prompts_are_named(run, files, tmp_path, caplog):
    settings = tmp_path / "gains.jsonl.settings.json"
    made = run(files, "--methods", "standard_rag") / "standard_rag.jsonl.settings.json"
    settings.write_text(made.read_text())
    run(files, "--methods", "standard_rag")
    assert "gains of" not in caplog.text
    settings.write_text(json.dumps({"flags": {"weights": "another", "task": "ASQA", "prompts": "beef"}}))
    run(files, "--methods", "standard_rag")
    for what in ("another LLM than this run has (another then,", "other prompts than this run has (beef then,"):
        assert f"gains.jsonl: gains of {what}" in caplog.text
    assert "gains.jsonl: gains of another task than this run has (ASQA then, NaturalQA now)" in caplog.text


def test_picks_that_were_not_scored_leave_the_gain_out(run, files, write_jsonl, caplog):
    few = [{**record, "answers": ["Paris", "Paris"]} for record in gains(4)]  # the same answers
    del few[2]["passages"][1]
    changed = [*files[:3], write_jsonl("few.jsonl", few), *files[4:]]
    results = json.loads((run(changed, "--methods", "rerank", "standard_rag") / "results.json").read_text())
    assert results["rerank"]["picks"]["pick_gain"] is None
    assert results["standard_rag"]["picks"]["pick_gain"]["mean"] < 0
    assert "rerank: 1 picks are not among the scored passages" in caplog.text


def test_an_interrupted_run_ends_with_the_same_bytes(run, files, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "git_commit", lambda: "0")  # someone may commit meanwhile
    monkeypatch.setattr(run_baselines, "CHUNK", 2)
    whole = run(files, output="whole")
    line_of, count = resume.line_of, [0]

    def stops(record):
        count[0] += 1
        if count[0] % 8 == 7:
            raise KeyboardInterrupt
        return line_of(record)

    interruptions = 0
    monkeypatch.setattr(resume, "line_of", stops)
    while not (tmp_path / "out" / "results.md").exists():
        try:
            run(files)
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 3
    for file in whole.glob("*"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


def test_overwrite_given_again_after_a_kill_keeps_the_methods_that_were_finished(run, files, monkeypatch, tmp_path):
    folder, append = run(files), resume.StageOutput.append
    written: list[str] = []
    kills = ["rerank"]

    def dies_once(output, records):
        written.append(output.path.stem)
        if written[-1] in kills:
            raise KeyboardInterrupt(kills.pop())
        append(output, records)

    monkeypatch.setattr(resume.StageOutput, "append", dies_once)
    with pytest.raises(KeyboardInterrupt, match="rerank"):
        run(files, "--overwrite")
    written.clear()
    run(files, "--overwrite")
    assert written == ["rerank", "gainrag_no_pseudo", "gainrag", "best_by_gain"]
    written.clear()
    run(files, "--overwrite")  # it was finished: all is made anew
    assert len(written) == 6 and not list(folder.glob("*.unfinished*"))


def test_mistakes_are_named_before_any_model_loads(run, files, write_jsonl, monkeypatch):
    monkeypatch.setattr(engines, "load_engine", lambda *_: pytest.fail("the LLM was loaded"))

    def refused(problem, data=files[1], gains_path=files[3], selections=files[5:], more=()):
        with pytest.raises(UserError, match=problem):
            run(["--data_path", data, "--gains_path", gains_path, "--selections", *selections], *more)

    def selection(records):
        return [f"gainrag={write_jsonl('selected.jsonl', records)}"]

    refused("--methods plain_ppl needs --selections plain_ppl=FILE", more=["--methods", "plain_ppl"])
    refused("wanted METHOD=FILE with METHOD among rerank", selections=["gain=x.jsonl"])
    refused("wanted METHOD=FILE", selections=["gainrag"])
    refused("gone.jsonl: no such file", selections=["gainrag=gone.jsonl"])
    refused("selected.jsonl: lacks 1 questions of --data_path, the first is id '3'", selections=selection(made(3, 1)))
    refused("selected.jsonl:5: field 'id': 0 is there twice", selections=selection([*made(4, 1), *made(1, 1)]))
    foreign = {"question": "Another?"}
    refused(
        "under id 2 it has 'Another[?]', where the question to be answered is 'Which, 2[?]'",
        selections=selection([{**record, **(foreign if record["id"] == 2 else {})} for record in made(4, 1)]),
    )
    other_gains = write_jsonl("other_gains.jsonl", [{**record, **foreign} for record in gains(4)])
    refused("other_gains.jsonl: under id 0 it has 'Another[?]'", gains_path=other_gains)
    other_answers = write_jsonl("other_answers.jsonl", [{**record, "answers": ["Rome"]} for record in gains(4)])
    refused(
        r"other_answers.jsonl: gains of id 0 were made for the answers \['Rome'\], the question to be answered has "
        r"\['Paris'\]; run construct_hf on .*retrieved.jsonl",
        gains_path=other_answers,
    )
    refused(r"selected.jsonl:1: field 'ctxs': missing", selections=selection(gains(4)))
    refused(
        r"nameless.jsonl:1: field 'id': missing",
        data=write_jsonl("nameless.jsonl", [{**record, "id": None} for record in made(2, 0)]),
    )
    refused(r"retrieved.jsonl:1: field 'passages': missing", gains_path=files[1])
    unscored = gains(4)
    del unscored[1]["passages"][2]["PPL_CD"]
    no_gain = write_jsonl("unscored.jsonl", unscored)
    refused(r"unscored.jsonl:2: field 'passages\[2\].PPL_CD': missing", gains_path=no_gain)
    refused("--task Hot: unknown", more=["--task", "Hot"])
    with pytest.raises(UserError, match="--methods best_by_gain needs --gains_path"):
        run(files[:2], "--methods", "best_by_gain")
