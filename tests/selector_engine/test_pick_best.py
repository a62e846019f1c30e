"""gainRAG.selector_engine.pick_best: from scores of all candidates the same picks as a selection of its own makes."""

import sys

import pytest

from gainRAG.common.cli import UserError
from gainRAG.selector_engine import pick_best, selector_gainRag

QUESTIONS = [
    {
        "id": f"q{n}",
        "question": f"where is {n}",
        "answers": [str(n)],
        "ctxs": [{"id": f"{n}-{r}", "title": f"t{r}", "text": f"{n} is in place {r * n}"} for r in range(5)],
    }
    for n in range(12)
]


@pytest.fixture
def run(monkeypatch):
    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments)])
        main()

    return call


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("no_pseudo", [False, True])
def test_the_picks_are_those_of_a_selection(run, write_jsonl, read_jsonl, tmp_path, tiny_reranker, k, no_pseudo):
    data = write_jsonl("retrieved.jsonl", QUESTIONS)
    written = [{**one, "background": f"{n} is in place {7 * n + 1}"} for n, one in enumerate(QUESTIONS)]
    own = write_jsonl(
        "written.jsonl", [{name: one[name] for name in ("id", "question", "background")} for one in written]
    )
    common = ("--model_name_or_path", tiny_reranker, "--data_path", data, "--device", "cpu")
    scored, there, here = (tmp_path / f"{name}.jsonl" for name in ("scored", "there", "here"))
    run(
        selector_gainRag.main,
        *common,
        "--output_path",
        scored,
        "--K_docs",
        6,
        "--n_candidates",
        5,
        "--background_path",
        own,
    )
    flags = ["--no_pseudo"] if no_pseudo else ["--background_path", own]
    run(selector_gainRag.main, *common, "--output_path", there, "--K_docs", k, "--n_candidates", 5, *flags)
    run(
        pick_best.main,
        "--data_path",
        scored,
        "--output_path",
        here,
        "--K_docs",
        k,
        *(["--no_pseudo"] if no_pseudo else []),
    )

    def picks(path):
        return [[(one["id"], one["is_pseudo"]) for one in record["ctxs"]] for record in read_jsonl(path)]

    assert picks(here) == picks(there)
    assert all(sum(one["is_pseudo"] for one in record["ctxs"]) == 1 for record in read_jsonl(scored))


def test_a_finished_output_stays_and_other_picks_are_refused(run, write_jsonl, tmp_path):
    ranked = [{**one, "ctxs": [{**passage, "selector_score": 0} for passage in one["ctxs"]]} for one in QUESTIONS]
    out = tmp_path / "out.jsonl"
    command = (pick_best.main, "--data_path", write_jsonl("scored.jsonl", ranked), "--output_path", out)
    run(*command)
    written = out.stat().st_mtime_ns
    run(*command)
    assert out.stat().st_mtime_ns == written
    with pytest.raises(UserError, match="K_docs"):
        run(*command, "--K_docs", 2)
    run(*command, "--K_docs", 2, "--overwrite")
    assert out.stat().st_mtime_ns > written


def test_candidates_that_no_selector_scored_or_ordered_are_refused(run, write_jsonl, tmp_path):
    out = ("--output_path", tmp_path / "out.jsonl")
    with pytest.raises(UserError, match=r"retrieved\.jsonl:1: field 'ctxs\[0\]\.selector_score': missing"):
        run(pick_best.main, "--data_path", write_jsonl("retrieved.jsonl", QUESTIONS), *out)
    mixed = [{**QUESTIONS[0], "ctxs": [{**one, "selector_score": n} for n, one in enumerate(QUESTIONS[0]["ctxs"])]}]
    with pytest.raises(UserError, match=r"selector_score': 1 is above the 0 before it"):
        run(pick_best.main, "--data_path", write_jsonl("mixed.jsonl", mixed), *out)
    pseudo = [{**one, "ctxs": [{**one["ctxs"][0], "selector_score": 0, "is_pseudo": True}]} for one in QUESTIONS]
    with pytest.raises(UserError, match="question 'q0': --no_pseudo leaves it no passage; --data_path wants all"):
        run(pick_best.main, "--data_path", write_jsonl("first.jsonl", pseudo), *out, "--no_pseudo")
