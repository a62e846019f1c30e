"""data/split_questions.py: every wording has one part, and no part knows the questions of another."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from gainRAG.common.cli import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("split_questions", REPOSITORY / "data" / "split_questions.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

THINGS = [f"{colour} {animal}" for colour in ("red", "blue", "old", "tall") for animal in ("cat", "dog", "fox", "owl")]
QUESTIONS = [
    {"id": f"{place}-{thing}", "question": f"where in {place} does the {thing} sleep at night", "answers": ["x"]}
    for place in ("Rome", "Oslo", "Lima", "Bonn")
    for thing in THINGS
]


@pytest.fixture
def split(monkeypatch, tmp_path, read_jsonl):
    """Runs the script; the ids of each part. The sleeping animals differ in two of nine words."""

    def run(*arguments):
        output = tmp_path / "parts"
        monkeypatch.setattr(sys, "argv", ["split_questions.py", "--output_dir", str(output), *map(str, arguments)])
        script.main()
        return {name: [record["id"] for record in read_jsonl(output / f"{name}.jsonl")] for name in script.PARTS}

    return run


def test_the_wording_alone_decides_the_part(split, write_jsonl):
    path = write_jsonl("q.jsonl", QUESTIONS)
    parts = split("--data_path", path, "--similar", 1)
    assert sorted(sum(parts.values(), [])) == sorted(record["id"] for record in QUESTIONS)
    assert 20 <= len(parts["test"]) <= 38 and 1 <= len(parts["dev"]) <= 14
    other = [{**record, "question": record["question"].upper() + "?"} for record in QUESTIONS[::-1]]
    again = split("--data_path", write_jsonl("other.jsonl", other), "--similar", 1)
    assert {name: sorted(ids) for name, ids in again.items()} == {name: sorted(ids) for name, ids in parts.items()}


def test_the_last_places_are_tested_and_a_smaller_dev_share_changes_no_test_question(split, write_jsonl):
    path = write_jsonl("q.jsonl", QUESTIONS)
    places = {record["id"]: script.place_of(record["question"]) for record in QUESTIONS}
    parts = split("--data_path", path, "--similar", 1, "--test", 0.6, "--dev", 0.1)
    assert parts["test"] == [name for name, place in places.items() if place >= 0.4]
    assert parts["dev"] == [name for name, place in places.items() if 0.3 <= place < 0.4]
    assert split("--data_path", path, "--similar", 1, "--test", 0.6, "--dev", 0.05)["test"] == parts["test"]


def test_what_is_nearly_the_same_as_a_question_of_an_earlier_part_is_left_out(split, write_jsonl, caplog):
    caplog.set_level("INFO")
    path = write_jsonl("q.jsonl", QUESTIONS)
    parts = split("--data_path", path, "--similar", 0.7)
    words = {record["id"]: set(record["question"].lower().split()) - {"the"} for record in QUESTIONS}

    def near(a, b):
        return len(words[a] & words[b]) / len(words[a] | words[b]) >= 0.7

    assert any(near(a, b) for a in parts["test"] for b in parts["test"] if a != b)  # within a part they may stay
    for earlier, later in (("test", "dev"), ("test", "train"), ("dev", "train")):
        assert not [(a, b) for a in parts[earlier] for b in parts[later] if near(a, b)]
    said = caplog.text
    everything = split("--data_path", path, "--similar", 1)
    left_out = set(everything["train"]) - set(parts["train"])
    assert left_out and all(any(near(a, b) for b in parts["test"] + parts["dev"]) for a in left_out)
    assert f"test {len(parts['test'])} (0 repetitions and near-repetitions left out), dev " in said
    assert f", train {len(parts['train'])} ({len(left_out)})" in said


def test_a_list_of_wordings_has_its_own_part_and_a_wording_counts_once(split, write_jsonl, read_jsonl, tmp_path):
    known = tmp_path / "known.json"
    known.write_text(json.dumps({"seen": [record["question"].title() for record in QUESTIONS[:40]]}))
    path = write_jsonl("q.jsonl", QUESTIONS + [{**record, "id": "again"} for record in QUESTIONS])
    parts = split("--data_path", path, "--similar", 1, "--exclude", known, "seen")
    assert sorted(sum(parts.values(), [])) == sorted(record["id"] for record in QUESTIONS[40:])
    assert read_jsonl(tmp_path / "parts" / "excluded.jsonl") == QUESTIONS[:40]


def test_what_is_nearly_the_same_as_a_question_of_an_earlier_experiment_is_left_out(split, write_jsonl):
    path, earlier = write_jsonl("q.jsonl", QUESTIONS), write_jsonl("earlier.jsonl", QUESTIONS[:1])
    parts = split("--data_path", path, "--similar", 0.9, "--unlike", earlier)
    assert sorted(sum(parts.values(), [])) == sorted(record["id"] for record in QUESTIONS[1:])
    fewer = split("--data_path", path, "--similar", 0.7, "--unlike", earlier, "--test", 1, "--dev", 0)
    # Those with one other word, 8 of 10 in common: another animal, another colour, another place.
    assert len(fewer["test"]) == len(QUESTIONS) - 1 - 3 - 3 - 3


def test_more_than_all_questions_is_refused(split, write_jsonl):
    with pytest.raises(UserError, match=r"--test 0\.8 and --dev 0\.3 are more than all questions together"):
        split("--data_path", write_jsonl("q.jsonl", QUESTIONS), "--test", 0.8, "--dev", 0.3)
