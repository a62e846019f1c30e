"""gainRAG.analysis.evidence: the published numbers follow from the published lines, and lines from a run."""

import gzip
import json
import lzma
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import each
from made_up_runs import whole_run

from gainRAG.analysis import evidence
from gainRAG.analysis.evidence_page import methods_table
from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import read_records, write_records
from gainRAG.evaluation.gains import gain_of

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "docs" / "results"


@pytest.fixture
def run(monkeypatch, tmp_path):
    def compute(*arguments) -> Path:
        monkeypatch.setattr(sys, "argv", ["evidence.py", "--output_dir", str(tmp_path / "out"), *map(str, arguments)])
        evidence.main()
        return tmp_path / "out"

    return compute


def test_a_runs_numbers(run, tmp_path):
    folder = run("--work", whole_run(tmp_path / "run", "A_test", 30), "--name", "A_test")
    lines = evidence.read_lines(folder / evidence.TEST)
    assert len(lines) == 30
    picks = lines[4]["methods"]  # GainRAG picks the fourth candidate, the pseudo-passage, of PPL_CD 2 ** 3
    assert picks["gainrag"]["pseudo"] and picks["gainrag"]["gain"] == pytest.approx(-np.log(9), abs=1e-6)
    assert picks["standard_rag"] == {
        "pick": "4-0", "hit": True, "gain": pytest.approx(-np.log(2), abs=1e-6), "prediction": "Paris ", "cover_em": 1,
        "f1": 1.0,
    }  # fmt: skip
    found = json.loads((folder / evidence.EVIDENCE).read_text())
    gain = np.mean([-np.log(2 ** (3 if n % 4 == 0 else n % 3) + 1) for n in range(30)])
    assert found["n"] == 30 and found["methods"]["gainrag"]["pick_gain"]["mean"] == pytest.approx(gain, abs=1e-5)
    [row] = [row for row in found["tests"] if (row["metric"], row["a"]) == ("pick_gain", "standard_rag")]
    assert row["b"] == "gainrag" and row["difference"] == pytest.approx(gain + np.log(2), abs=1e-5)
    assert row["low"] < row["difference"] < row["high"] < 0 and row["p"] < 0.001
    right = np.mean([n % 3 == 0 or n % 5 != 0 for n in range(30)])
    gap = found["gap"]["gainrag"]  # every passage of this run holds a gold answer
    assert gap["wrong_of_held"]["mean"] == pytest.approx(1 - right) and gap["not_held_of_right"]["mean"] == 0
    assert found["methods"]["gainrag"]["cover_em"]["mean"] == pytest.approx(right)
    assert "| GainRAG " in (folder / evidence.PAGE).read_text()


def test_runs_on_different_questions_are_pooled(run, tmp_path):
    works = [whole_run(tmp_path / part, "A_test", 30) for part in ("one", "two")]
    alone = json.loads((run("--work", works[0], "--name", "A_test") / evidence.EVIDENCE).read_text())
    with pytest.raises(UserError, match="two: question 'q0' is in another of --work, too"):
        run("--work", *works, "--name", "A_test")
    with pytest.raises(UserError, match="--gains_dir takes one run's gains"):
        run("--work", *works, "--name", "A_test", "--gains_dir", tmp_path / "gains")
    for path in works[1].rglob("*.jsonl"):
        path.write_text(re.sub('"q([0-9]+)"', r'"A-\1"', path.read_text()))
    pooled = json.loads((run("--work", *works, "--name", "A_test") / evidence.EVIDENCE).read_text())
    assert pooled["n"] == 60 and pooled["datasets"]["A two"] == 30 and pooled["datasets"]["q0 one"] == 1
    for method, means in pooled["methods"].items():
        assert (
            means.keys() == alone["methods"][method].keys()
            and pooled["by_dataset"]["A two"][method].keys() == means.keys()
        )
        for metric in means.keys() - {"pseudo_share"}:
            assert means[metric]["mean"] == pytest.approx(alone["methods"][method][metric]["mean"])


def test_the_same_lines_give_the_same_bytes_and_the_run_is_not_needed(run, tmp_path):
    folder = run("--work", whole_run(tmp_path / "run", "A_test", 30), "--name", "A_test")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run() == folder and {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_runs_gains_are_written_compressed_with_six_digits(run, tmp_path):
    work = whole_run(tmp_path / "run", "A_test", 30)
    run("--work", work, "--name", "A_test", "--gains_dir", tmp_path / "gains")
    with lzma.open(tmp_path / "gains" / "A_test.jsonl.xz", "rt") as file:
        written = [json.loads(line) for line in file]
    original = [json.loads(line) for line in (work / "gains" / "A_test.jsonl").open()]
    assert [record["id"] for record in written] == [record["id"] for record in original]
    for record, source in zip(written, original, strict=True):
        for passage, before in zip(record["passages"], source["passages"], strict=True):
            assert passage["PPL_CD"] == pytest.approx(before["PPL_CD"], rel=1e-5)
            assert len(f"{passage['PPL_CD']!r}".replace(".", "").strip("0")) <= 6


def test_a_pick_without_its_gain_is_named(run, tmp_path):
    work = whole_run(tmp_path / "run", "A_test", 30)
    path = work / "gains" / "A_test.jsonl"
    path.write_text(path.read_text().replace('"own-8"', '"other"'))
    with pytest.raises(UserError, match="gainrag's pick for question 'q8' was not scored by its gain"):
        run("--work", work, "--name", "A_test")
    path.write_text(path.read_text().replace('"Paris"', '"Rome"'))
    with pytest.raises(
        UserError, match=r"gains of id 'q0' were made for the answers \['Rome', 'here'\].*run construct_hf on"
    ):
        run("--work", work, "--name", "A_test")


def test_a_question_without_a_passage_is_named(run, tmp_path):
    work = whole_run(tmp_path / "run", "A_test", 30)
    path = work / "retrieved" / "A_test.jsonl"
    records = list(read_records(path))
    write_records(path, [{**records[0], "ctxs": []}, *records[1:]])
    with pytest.raises(UserError, match="standard_rag has no passage for question 'q0'"):
        run("--work", work, "--name", "A_test")


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(UserError, match=r"test\.jsonl\.gz: no such file; give the run's folder with --work"):
        run()
    with pytest.raises(UserError, match=r"answers/test: no results\.json"):
        run("--work", tmp_path)
    cut = gzip.compress(b"text that is long enough", mtime=0)
    damaged = cut[:12] + bytes([cut[12] ^ 255]) + cut[13:]
    for content, said in (
        (b"plain", "is not a gzip file"),
        (cut[:-9], "is not"),
        (damaged, "is not"),
        (gzip.compress(b""), "no questions"),
    ):
        (tmp_path / "out" / evidence.TEST).write_bytes(content)
        with pytest.raises(UserError, match=said):
            run()


@each("folder", [RESULTS, RESULTS / "other_sets", RESULTS / "new_domain"])
def test_the_published_numbers_follow_from_the_published_lines(folder):
    lines = evidence.read_lines(folder / evidence.TEST)
    found = evidence.summarize_lines(lines)
    assert found == json.loads((folder / evidence.EVIDENCE).read_text())
    assert evidence.evidence_page(found) == (folder / evidence.PAGE).read_text()
    assert found["n"] == len({line["id"] for line in lines}) >= 1000


def test_the_readme_quotes_the_published_numbers():
    found = json.loads((RESULTS / evidence.EVIDENCE).read_text())
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert methods_table(found["methods"]) in readme and f"n = {found['n']:,}" in readme
    for row in found["tests"]:
        if row["metric"] == "f1":
            continue
        scale, digits = (1, 3) if row["metric"] == "pick_gain" else (100, 1)
        difference, low, high = (f"{scale * row[part]:+.{digits}f}" for part in ("difference", "low", "high"))
        assert f"{difference} [{low}, {high}], p {row['p']:.4f}" in readme
    for folder, bases in (("other_sets", ("rerank",)), ("new_domain", ("rerank", "standard_rag"))):
        found = json.loads((RESULTS / folder / evidence.EVIDENCE).read_text())
        rows = [row for row in found["tests"] if row["a"] in bases and row["b"] == evidence.OURS[0]]
        rows = [row for row in rows if row["metric"] in ("pick_gain", "hit_at_1")]
        assert len(rows) == 2 * len(bases) and f"{found['n']:,}" in readme
        for row in rows:
            scale, digits = (1, 3) if row["metric"] == "pick_gain" else (100, 1)
            difference, low, high = (f"{scale * row[part]:+.{digits}f}" for part in ("difference", "low", "high"))
            assert f"{difference} [{low}, {high}], p {row['p']:.4f}" in readme.split(f"{folder}/README.md")[1]


def test_the_gains_of_the_picks_are_those_of_the_data_set():
    with lzma.open(REPOSITORY / "data" / "gains_smollm2" / "test.jsonl.xz", "rt") as file:
        records = {record["id"]: record for record in map(json.loads, file)}
    lines = evidence.read_lines(RESULTS / evidence.TEST)
    assert [line["id"] for line in lines] == list(records)
    for line in lines:
        gains = {one["id"]: gain_of(one["PPL_CD"]) for one in records[line["id"]]["passages"]}
        for method, picked in line["methods"].items():
            if method != "no_retrieval":
                assert picked["gain"] == pytest.approx(gains[picked["pick"]], abs=1e-5)
        assert line["methods"]["best_by_gain"]["gain"] == pytest.approx(max(gains.values()), abs=1e-5)
