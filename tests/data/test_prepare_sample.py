"""data/prepare_sample.py: what is drawn, from which records, and that it is drawn again."""

import importlib.util
import sys
from pathlib import Path

import pytest

from gainRAG.common.cli import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("prepare_sample", REPOSITORY / "data" / "prepare_sample.py")
sample = sys.modules["prepare_sample"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sample)

QUESTIONS = [{"id": str(n), "question": f"Q{n}?", "answers": ["x"] * (1 + n % 3), "type": "t"} for n in range(50)]


@pytest.fixture
def draw(monkeypatch, tmp_path, read_jsonl):
    """Runs the script on files and flags, and gives the ids that it wrote."""

    def run(*arguments):
        output = tmp_path / "out.jsonl"
        monkeypatch.setattr(sys, "argv", ["prepare_sample.py", "--output_path", str(output), *map(str, arguments)])
        sample.main()
        return [record["id"] for record in read_jsonl(output)]

    return run


def test_plain_questions_are_drawn_by_a_fixed_seed_in_their_order(draw, write_jsonl, tmp_path, read_jsonl):
    path = write_jsonl("train.jsonl", QUESTIONS)
    drawn = draw("--data_path", path, "--sample", 8)
    assert drawn == ["1", "6", "7", "8", "14", "15", "17", "40"]
    assert read_jsonl(tmp_path / "out.jsonl")[0] == QUESTIONS[1]  # as it was, other fields included
    assert draw("--data_path", path, "--sample", 8) == drawn
    assert draw("--data_path", path, "--sample", 8, "--seed", 1) != drawn
    assert len(draw("--data_path", path)) == 50
    left = [write_jsonl(name, QUESTIONS[start:]) for name, start in (("gains.jsonl", 30), ("scored.jsonl", 48))]
    assert draw("--data_path", path, "--also_in", *left) == ["48", "49"]


def test_more_than_there_are_is_reported(draw, write_jsonl, caplog):
    path = write_jsonl("train.jsonl", QUESTIONS)
    assert len(draw("--data_path", path, "--max_answers", 1, "--sample", 20)) == 17
    assert "--sample 20: only 17 questions are usable" in caplog.text


def test_questions_that_the_first_passages_answer(draw, write_jsonl):
    hits = [[True, False], [False, True], [False, False], [None, False]]
    rows = [
        {"id": str(n), "question": "Q?", "answers": ["x"], "ctxs": [{"text": "an x", "hasanswer": hit} for hit in pair]}
        for n, pair in enumerate(hits)
    ]
    path = write_jsonl("retrieved.jsonl", rows)
    assert draw("--data_path", path, "--answerable_in_top", 1) == ["0", "3"]  # null: looked for
    assert draw("--data_path", path, "--answerable_in_top", 2) == ["0", "1", "3"]
    with pytest.raises(UserError, match=r"no question is left \(1 no gold answer in the first 2 passages\)"):
        draw("--data_path", write_jsonl("none.jsonl", rows[2:3]), "--answerable_in_top", 2)
