import json
import re

import pytest
from conftest import each

from gainRAG.common.cli import UserError
from gainRAG.evaluation.compare import compare, comparison_table, paired_scores


def prediction(number, score, **fields):
    return {"id": number, "question": f"question {number}", "cover_em": score, "em": score, "f1": score, **fields}


def test_files_pair_by_id_whatever_their_order(write_jsonl):
    a = write_jsonl("a.jsonl", [prediction(n, n % 2) for n in range(10)])
    b = write_jsonl("b.jsonl", [prediction(str(n), 1.0) for n in reversed(range(10))])
    pairs = paired_scores(a, b)
    assert [(left["id"], right["id"]) for left, right in pairs] == [(n, str(n)) for n in range(10)]
    row = compare(pairs)[0]
    assert (row["metric"], row["a"], row["b"], row["difference"]) == ("cover_em", 0.5, 1.0, 0.5)
    assert 0 < row["low"] < 0.5 < row["high"] < 1
    assert row["p"] == pytest.approx(2 / 2**5, abs=0.01)


def test_accuracy_is_compared_where_both_files_have_it(write_jsonl):
    with_accuracy = write_jsonl("a.jsonl", [prediction(n, 1, accuracy=0.0) for n in range(3)])
    without = write_jsonl("b.jsonl", [prediction(n, 1) for n in range(3)])
    assert [row["metric"] for row in compare(paired_scores(with_accuracy, with_accuracy))][0] == "accuracy"
    assert [row["metric"] for row in compare(paired_scores(with_accuracy, without))] == ["cover_em", "em", "f1"]


def test_table_is_in_percent():
    row = {"metric": "em", "a": 0.318, "b": 0.396, "difference": 0.078, "low": 0.031, "high": 0.125, "p": 0.0012}
    line = comparison_table([row]).splitlines()[-1]
    assert re.split(r" *\| *", line.strip("| ")) == ["em", "31.80", "39.60", "+7.80", "+3.10 to +12.50", "0.0012"]


@each(
    ("second", "message"),
    [
        ([prediction(0, 1)], r"b\.jsonl: lacks 2 ids that the other file has \(1, 2\)"),
        ([prediction(n, 1) for n in range(7)], r"a\.jsonl: lacks 4 ids that the other file has \(3, 4, 5\)"),
        ([prediction(n, 1) for n in (0, 1, 2, 1)], r"b\.jsonl:4: field 'id': 1 is there twice"),
        ([prediction(n, 1, question="another") for n in range(3)], r"b\.jsonl: id 0 is another question"),
        ([{"id": 0, "em": 1, "f1": 1}], r"b\.jsonl:1: field 'cover_em': None is not a score"),
        ([prediction(0, 39.6)], r"field 'cover_em': 39.6 is not a score from 0 to 1"),
        ([prediction(None, 1)], r"field 'id'"),
    ],
)
def test_files_that_do_not_match(write_jsonl, second, message):
    a = write_jsonl("a.jsonl", [prediction(n, 0) for n in range(3)])
    with pytest.raises(UserError, match=message):
        paired_scores(a, write_jsonl("b.jsonl", second))


@pytest.mark.parametrize("form", [("gainRAG", "evaluation.compare"), (".", "gainRAG.evaluation.compare")])
def test_command(write_jsonl, tmp_path, run_python, form):
    folder, module = form
    a = write_jsonl("a.jsonl", [prediction(n, 0.0) for n in range(20)])
    b = write_jsonl("b.jsonl", [prediction(n, float(n < 10)) for n in range(20)])
    out = tmp_path / "out.json"
    done = run_python("-m", module, a, b, "--json", out, "--samples", 500, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "20 questions" in done.stdout
    assert re.search(r"\| f1 +\| 0\.00 +\| 50\.00 +\| \+50\.00 +\|", done.stdout)
    written = json.loads(out.read_text())
    assert [row["metric"] for row in written["metrics"]] == ["cover_em", "em", "f1"]
    assert written["metrics"][0]["difference"] == 0.5


def test_a_missing_file_is_one_line(run_python, tmp_path):
    done = run_python("-m", "gainRAG.evaluation.compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("a.jsonl: no such file")
    assert "Traceback" not in done.stderr
