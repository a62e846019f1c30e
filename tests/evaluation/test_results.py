import json
import logging
import re
from pathlib import Path

import pytest

import gainRAG
from gainRAG.evaluation.answers import score_prediction
from gainRAG.evaluation.results import SUSPECTS_LISTED, markdown_table, summarize

ABOUT = {"split": "HotpotQA dev", "model": "tiny", "prompts_hash": "abc", "seed": 0}


def scored(number, prediction, answers):
    return {"id": f"q{number}", "answers": answers, **score_prediction(prediction, answers)}


def test_summary_states_what_was_measured():
    predictions = [scored(n, "Paris it is", ["Paris" if n < 3 else "Rome"]) for n in range(4)]
    summary = summarize(predictions, **ABOUT, method="standard")
    assert summary["questions"] == 4
    assert {name: summary[name] for name in ABOUT} == ABOUT
    assert summary["method"] == "standard"
    assert "torch" in summary["versions"]
    if (Path(gainRAG.__file__).parents[1] / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", summary["git_commit"])
    assert list(summary["metrics"]) == ["cover_em", "cover_em_bounded", "em", "f1"]
    cover = summary["metrics"]["cover_em"]
    assert cover["mean"] == 0.75
    assert 0 <= cover["low"] < 0.75 < cover["high"] <= 1
    assert summary["metrics"]["em"] == {"mean": 0, "low": 0, "high": 0}
    assert summary["suspect_answers"] == {"questions": 0, "share": 0, "empty_after_normalising": 0, "examples": []}
    json.dumps(summary, allow_nan=False)


def test_accuracy_is_summarized_where_it_was_measured():
    predictions = [{"id": 1, "answers": ["B"], "accuracy": 1.0}, {"id": 2, "answers": ["A"], "accuracy": 0.0}]
    summary = summarize(predictions, **ABOUT)
    assert list(summary["metrics"]) == ["accuracy"]
    assert summary["metrics"]["accuracy"]["mean"] == 0.5


def test_suspect_answers_are_listed_and_warned_about(caplog):
    predictions = [scored(n, "x", ["yes", "Paris"]) for n in range(SUSPECTS_LISTED + 5)]
    predictions += [scored("-the", "x", ["The"]), scored("-fine", "x", ["Rome"])]
    with caplog.at_level(logging.WARNING):
        suspects = summarize(predictions, **ABOUT)["suspect_answers"]
    assert suspects["questions"] == SUSPECTS_LISTED + 6
    assert suspects["share"] == pytest.approx(26 / 27)
    assert suspects["empty_after_normalising"] == 1
    assert len(suspects["examples"]) == SUSPECTS_LISTED
    assert suspects["examples"][0] == {"id": "q0", "answers": ["yes"]}
    assert "1 of 27 questions have a gold answer that normalises to nothing" in caplog.text


def test_nothing_to_summarize():
    with pytest.raises(ValueError, match="no predictions"):
        summarize([], **ABOUT)


def test_markdown_table():
    table = markdown_table(("set", "EM"), [("Hotpot|QA", 39.6), ("NQ", None), ("n", 500)])
    assert table == (
        "| set        | EM    |\n"
        "| ---------- | ----- |\n"
        "| Hotpot\\|QA | 39.60 |\n"
        "| NQ         |       |\n"
        "| n          | 500   |\n"
    )  # fmt: skip
    assert markdown_table(("set",), []) == "| set |\n| --- |\n"
