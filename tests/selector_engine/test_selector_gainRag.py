"""selector_gainRag: from retrieval output and pseudo-passages to the best passages, whole or resumed."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import SENTENCES, each, killed_at_record

from gainRAG.common.cli import UserError
from gainRAG.llm_inference import engine as engines
from gainRAG.selector_engine import selector_gainRag
from gainRAG.selector_engine.selector import Selector


def made_questions(count: int = 20) -> list[dict]:
    """Questions with 3 to 6 passages; the answer Paris is in the first sentence only."""
    questions = []
    for number in range(count):
        texts = [f"{SENTENCES[(number + rank) % 8]} {number}" for rank in range(3 + number % 4)]
        passages = [
            {"id": f"{number}-{rank}", "title": f"t{rank}", "text": text, "score": -rank, "hasanswer": "Paris" in text}
            for rank, text in enumerate(texts)
        ]
        questions.append(
            {"id": f"q{number}", "question": f"Question {number}?", "answers": ["Paris"], "level": 3, "ctxs": passages}
        )
    return questions


@pytest.fixture
def retrieved(write_jsonl):
    return write_jsonl("retrieved.jsonl", made_questions())


@pytest.fixture
def backgrounds(write_jsonl):
    """A pseudo-passage a question, "N/A" for every fifth."""
    texts = ["N/A" if n % 5 == 0 else f"{SENTENCES[n % 8] * (1 + n % 3)} Paris {n}." for n in range(20)]
    rows = [{"id": f"q{n}", "question": f"Question {n}?", "background": text} for n, text in enumerate(texts)]
    return write_jsonl("backgrounds.jsonl", rows[::-1])


@pytest.fixture
def select(monkeypatch, tiny_reranker, tmp_path):
    """Runs the stage in this process on the tiny selector and gives the output's path."""

    def run(data_path, *flags, output="selected.jsonl", model=tiny_reranker):
        path = tmp_path / output
        arguments = ["--model_name_or_path", model, "--data_path", data_path, "--output_path", path, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["selector_gainRag", *map(str, [*arguments, *flags])])
        selector_gainRag.main()
        return path

    return run


def test_keeps_the_best_of_retrieved_and_pseudo(select, retrieved, backgrounds, read_jsonl, tiny_reranker):
    rows = read_jsonl(select(retrieved, "--background_path", backgrounds, "--K_docs", 2))
    texts = {row["id"]: row["background"] for row in read_jsonl(backgrounds)}
    selector = Selector(str(tiny_reranker), device="cpu")
    assert [row["id"] for row in rows] == [f"q{number}" for number in range(20)]
    for row, question in zip(rows, made_questions(), strict=True):
        passages = [{**passage, "is_pseudo": False} for passage in question["ctxs"]]
        if texts[row["id"]] != "N/A":
            text = texts[row["id"]]
            passages.append(
                {"id": "pseudo", "title": "", "text": text, "score": None, "is_pseudo": True, "hasanswer": True}
            )
        expected = selector.select(question["question"], passages, k=2)
        for found, wanted in zip(row["ctxs"], expected, strict=True):
            assert found.pop("selector_score") == pytest.approx(wanted.pop("selector_score"), abs=1e-5)
            assert found == wanted
        assert row["level"] == 3
    assert any(passage["is_pseudo"] for row in rows for passage in row["ctxs"])
    assert any(not row["ctxs"][0]["is_pseudo"] for row in rows)


def test_metrics_count_recall_and_wins(select, retrieved, backgrounds, read_jsonl, capsys):
    path = select(retrieved, "--background_path", backgrounds, "--K_docs", 2)
    metrics = json.loads(path.with_suffix(".metrics.json").read_text())
    rows = read_jsonl(path)
    hits = [[passage["hasanswer"] for passage in row["ctxs"]] for row in rows]
    before = [[passage["hasanswer"] for passage in row["ctxs"]] for row in made_questions()]
    assert metrics["questions"] == 20
    assert metrics["pseudo_passages"] == 16
    assert metrics["pseudo_won"] == pytest.approx(np.mean([row["ctxs"][0]["is_pseudo"] for row in rows]))
    assert metrics["recall_after"] == {"top_1": np.mean([h[0] for h in hits]), "top_2": np.mean([max(h) for h in hits])}
    assert metrics["recall_before"]["top_1"] == pytest.approx(np.mean([h[0] for h in before]))
    assert metrics["recall_before"]["top_2"] == pytest.approx(np.mean([max(h[:2]) for h in before]))
    assert metrics["recall_of_all_retrieved"] == pytest.approx(np.mean([max(h) for h in before]))
    assert "was picked first for" in capsys.readouterr().out


def test_only_the_first_candidates_and_questions_count(select, retrieved, read_jsonl):
    rows = read_jsonl(select(retrieved, "--no_pseudo", "--n_candidates", 2, "--K_docs", 2, "--limit", 3))
    kept = [{passage["id"] for passage in row["ctxs"]} for row in rows]
    assert kept == [{f"{number}-0", f"{number}-1"} for number in range(3)]


def test_a_question_with_few_candidates_keeps_them_all(select, retrieved, read_jsonl):
    rows = read_jsonl(select(retrieved, "--no_pseudo", "--K_docs", 50))
    assert [len(row["ctxs"]) for row in rows] == [3 + number % 4 for number in range(20)]


def test_a_question_without_candidates_goes_through(select, write_jsonl, read_jsonl):
    questions = made_questions(3)
    questions[1]["ctxs"] = []
    path = select(write_jsonl("some.jsonl", questions), "--no_pseudo")
    assert [len(row["ctxs"]) for row in read_jsonl(path)] == [1, 0, 1]


def test_ties_go_to_the_earlier_and_to_the_retrieved(select, write_jsonl, read_jsonl):
    same = {"title": "", "text": SENTENCES[0]}
    question = {"id": "q", "question": "Where?", "answers": ["x"], "ctxs": [{"id": "a", **same}, {"id": "b", **same}]}
    background = {"id": "q", "question": "Where?", "background": SENTENCES[0]}
    path = select(
        write_jsonl("tie.jsonl", [question]),
        "--K_docs",
        3,
        "--background_path",
        write_jsonl("tied.jsonl", [background]),
    )
    assert [passage["id"] for passage in read_jsonl(path)[0]["ctxs"]] == ["a", "b", "pseudo"]


def test_missing_hasanswer_is_computed(select, write_jsonl, read_jsonl):
    questions = made_questions(8)
    for question in questions:
        for passage in question["ctxs"]:
            passage["hasanswer"] = None
        del question["ctxs"][0]["hasanswer"]
    rows = read_jsonl(select(write_jsonl("bare.jsonl", questions), "--no_pseudo", "--K_docs", 6))
    assert all(passage["hasanswer"] == ("Paris" in passage["text"]) for row in rows for passage in row["ctxs"])
    assert any(passage["hasanswer"] for row in rows for passage in row["ctxs"])


def test_json_output_holds_the_same_records(select, retrieved, read_jsonl):
    lines = select(retrieved, "--no_pseudo")
    as_list = select(retrieved, "--no_pseudo", output="selected.json")
    assert json.loads(as_list.read_text()) == read_jsonl(lines)


def test_the_llm_writes_pseudo_passages_once(select, retrieved, read_jsonl, tiny_llama, monkeypatch):
    flags = ["--lm_type", tiny_llama, "--background_tokens", 8, "--limit", 10, "--dtype", "float32"]
    path = select(retrieved, *flags)
    kept = path.with_suffix(".background.jsonl")
    assert [row["id"] for row in read_jsonl(kept)] == [f"q{number}" for number in range(10)]

    monkeypatch.setattr("gainRAG.llm_inference.engine.load_engine", lambda *_: pytest.fail("loaded again"))
    former = path.read_bytes()
    path.unlink()
    assert select(retrieved, *flags).read_bytes() == former
    other = select(retrieved, "--background_path", kept, "--limit", 10, output="other.jsonl")
    assert other.read_bytes() == former


def test_overwrite_given_again_writes_no_pseudo_passage_twice(select, retrieved, tiny_llama, monkeypatch):
    flags = ["--lm_type", tiny_llama, "--background_tokens", 8, "--dtype", "float32", "--overwrite"]
    whole = select(retrieved, *flags).read_bytes()
    load = engines.load_engine
    writers = []
    monkeypatch.setattr(engines, "load_engine", lambda *options: writers.append(options) or load(*options))

    def stops(self, pairs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Selector, "score", stops)
        select(retrieved, *flags)
    assert select(retrieved, *flags).read_bytes() == whole
    assert len(writers) == 1
    select(retrieved, *flags)
    assert len(writers) == 2


@each("given", ["changed", "all"])
def test_pseudo_passages_of_other_settings_are_replaced_even_after_a_refusal(select, retrieved, tiny_llama, given):
    flags = ["--lm_type", tiny_llama, "--dtype", "float32", "--background_tokens"]
    name = f"{given}.jsonl"
    select(retrieved, *flags, 6, output=name).unlink()
    with pytest.raises(UserError, match="max_new_tokens: 6 then, 8 now"):
        select(retrieved, *flags, 8, output=name)
    path = select(retrieved, *flags, 8, "--overwrite", given, output=name)
    whole = select(retrieved, *flags, 8, output="whole.jsonl")
    assert path.read_bytes() == whole.read_bytes()


def test_questions_too_long_to_write_about_are_named_or_left_out(select, write_jsonl, read_jsonl, tiny_llama):
    questions = made_questions(4)
    questions[2]["question"] = "Where? " * 1500
    data = write_jsonl("long.jsonl", questions)
    flags = ["--lm_type", tiny_llama, "--background_tokens", 4, "--dtype", "float32"]
    with pytest.raises(UserError, match=r"long\.jsonl:3: .*'q2'.*--skip_too_long"):
        select(data, *flags)
    path = select(data, *flags, "--skip_too_long")
    assert [row["id"] for row in read_jsonl(path)] == ["q0", "q1", "q3"]
    assert json.loads(path.with_suffix(".metrics.json").read_text())["too_long"] == 1
    assert len(read_jsonl(select(data, "--no_pseudo", output="all.jsonl"))) == 4


def test_na_is_a_candidate_where_it_is_asked_for(select, retrieved, backgrounds, read_jsonl):
    flags = ["--background_path", backgrounds, "--K_docs", 9]
    for extra, count in (([], 16), (["--keep_na"], 20)):
        rows = read_jsonl(select(retrieved, *flags, *extra, output=f"{count}.jsonl"))
        assert sum(passage["is_pseudo"] for row in rows for passage in row["ctxs"]) == count


def test_a_complete_output_is_left_alone(select, retrieved, monkeypatch):
    path = select(retrieved, "--no_pseudo")
    former = path.read_bytes()
    monkeypatch.setattr(Selector, "__init__", lambda *_: pytest.fail("the selector was loaded again"))
    assert select(retrieved, "--no_pseudo").read_bytes() == former
    with pytest.raises(UserError, match="K_docs"):
        select(retrieved, "--no_pseudo", "--K_docs", 2)


def test_killed_and_resumed_gives_the_same_bytes(select, retrieved, backgrounds, run_python, tiny_reranker, tmp_path):
    flags = ["--background_path", backgrounds, "--K_docs", 2]
    whole = select(retrieved, *flags, output="whole.jsonl")
    killed = tmp_path / "killed.jsonl"
    dead = run_python(
        "-c",
        killed_at_record("gainRAG.selector_engine.selector_gainRag", 11),
        "--model_name_or_path",
        tiny_reranker,
        "--data_path",
        retrieved,
        "--output_path",
        killed,
        "--device",
        "cpu",
        *flags,
        env={"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert dead.returncode == -9, dead.stderr
    assert not killed.exists()
    assert len((tmp_path / "killed.jsonl.unfinished").read_text().splitlines()) == 10
    assert select(retrieved, *flags, output="killed.jsonl").read_bytes() == whole.read_bytes()
    assert killed.with_suffix(".metrics.json").read_bytes() == whole.with_suffix(".metrics.json").read_bytes()


def test_a_resumed_run_scores_only_what_is_missing(select, retrieved, monkeypatch):
    score, scored = Selector.score, []

    def stops(self, pairs):
        scored.append(len(pairs))
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(self, pairs)

    monkeypatch.setattr(Selector, "score", stops)
    with pytest.raises(KeyboardInterrupt):
        select(retrieved, "--no_pseudo")
    select(retrieved, "--no_pseudo")
    last = sum(len(question["ctxs"]) for question in made_questions()[16:])
    assert scored[2:] == [last, last]


def test_broken_input_is_named(select, write_jsonl):
    questions = made_questions(3)
    del questions[1]["ctxs"][2]["text"]
    with pytest.raises(UserError, match=r"broken\.jsonl:2: field 'ctxs\[2\]'"):
        select(write_jsonl("broken.jsonl", questions), "--no_pseudo")
    del questions[1]["ctxs"]
    with pytest.raises(UserError, match=r":2: field 'ctxs': missing"):
        select(write_jsonl("broken.jsonl", questions), "--no_pseudo")


def test_backgrounds_of_other_questions_are_refused(select, retrieved, backgrounds, read_jsonl, write_jsonl):
    rows = read_jsonl(backgrounds)
    with pytest.raises(UserError, match=r"no pseudo-passage for id 'q19'"):
        select(retrieved, "--background_path", write_jsonl("few.jsonl", rows[1:]))
    rows[0]["question"] = "Something else?"
    with pytest.raises(UserError, match=r"no pseudo-passage for id 'q19'"):
        select(retrieved, "--background_path", write_jsonl("other.jsonl", rows))


def test_flags_that_cannot_be_are_refused(select, retrieved, backgrounds, tiny_encoder):
    with pytest.raises(UserError, match="at most 4 candidates"):
        select(retrieved, "--n_candidates", 3, "--K_docs", 5)
    with pytest.raises(UserError, match="give one of them"):
        select(retrieved, "--no_pseudo", "--background_path", backgrounds)
    with pytest.raises(UserError, match="neither a model folder"):
        select(retrieved, "--no_pseudo", model="nothing")
    with pytest.raises(UserError, match="1 output label"):
        select(retrieved, "--no_pseudo", model=tiny_encoder)
    with pytest.raises(UserError, match="ends in .jsonl or .json"):
        select(retrieved, "--lm_type", "nothing", output="selected.txt")
    with pytest.raises(UserError, match="no such file"):
        select("gone.jsonl", "--no_pseudo")
    with pytest.raises(UserError, match="neither a model folder"):
        select(retrieved, "--lm_type", "nothing")


def test_mistakes_end_with_one_line(run_python, retrieved, tmp_path):
    done = run_python(
        "-m",
        "selector_engine.selector_gainRag",
        "--model_name_or_path",
        "nothing",
        "--no_pseudo",
        "--data_path",
        retrieved,
        "--output_path",
        tmp_path / "s.json",
        folder="gainRAG",
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: nothing:")
    assert "Traceback" not in done.stderr
