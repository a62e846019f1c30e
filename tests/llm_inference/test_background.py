"""Pseudo-passages: what counts as one, and the file that keeps them."""

import argparse
import re

import pytest

from gainRAG.common.cli import UserError
from gainRAG.common.parallel import add_worker_arguments
from gainRAG.llm_inference import background
from gainRAG.llm_inference.background import (
    add_background_arguments,
    background_file,
    pseudo_passage,
    read_backgrounds,
)
from gainRAG.llm_inference.engine import add_engine_arguments

QUESTIONS = [{"id": number, "question": f"Who is number {number}?", "answers": ["x"]} for number in range(5)]


@pytest.mark.parametrize("text", ["", "  \n", "N/A", " n/a. ", "NA", "None", "N/A..."])
def test_knowing_nothing_gives_no_passage(text):
    assert pseudo_passage(text) is None


def test_a_text_becomes_a_candidate():
    wanted = {"id": "pseudo", "title": "", "text": "N/A is a note.", "score": None, "is_pseudo": True}
    assert pseudo_passage(" N/A is a note.\n") == wanted


@pytest.fixture
def arguments(tiny_llama):
    parser = argparse.ArgumentParser()
    add_background_arguments(parser)
    add_engine_arguments(parser)
    add_worker_arguments(parser)
    flags = ["--lm_type", str(tiny_llama), "--dtype", "float32", "--device", "cpu", "--background_tokens", "6"]
    return parser.parse_args(flags, argparse.Namespace(task="HotpotQA", overwrite=False))


@pytest.fixture
def data_path(write_jsonl):
    return write_jsonl("questions.jsonl", QUESTIONS)


def test_backgrounds_are_written_once(arguments, data_path, tmp_path, read_jsonl, monkeypatch):
    path = tmp_path / "background.jsonl"
    texts = background_file(path, QUESTIONS, arguments, data_path)
    assert [(row["id"], row["question"]) for row in read_jsonl(path)] == [(q["id"], q["question"]) for q in QUESTIONS]
    assert [row["background"] for row in read_jsonl(path)] == texts
    assert len(set(texts)) > 1
    monkeypatch.setattr(background, "load_engine", lambda args: pytest.fail("the LLM was loaded again"))
    assert background_file(path, QUESTIONS, arguments, data_path) == texts
    arguments.background_tokens = 7
    with pytest.raises(UserError, match="max_new_tokens: 6 then, 7 now"):
        background_file(path, QUESTIONS, arguments, data_path)


def test_an_interrupted_file_goes_on_alike(arguments, data_path, tmp_path, monkeypatch):
    monkeypatch.setattr(background, "CHUNK", 2)
    whole = tmp_path / "whole.jsonl"
    background_file(whole, QUESTIONS, arguments, data_path)
    append, path = background.StageOutput.append, tmp_path / "background.jsonl"

    def stops(self, record):
        if record["id"] == 3:
            raise KeyboardInterrupt
        append(self, record)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(background.StageOutput, "append", stops)
        background_file(path, QUESTIONS, arguments, data_path)
    background_file(path, QUESTIONS, arguments, data_path)
    assert path.read_bytes() == whole.read_bytes()


def test_backgrounds_are_found_by_id_and_wording(write_jsonl):
    rows = [{"id": str(q["id"]), "question": q["question"], "background": f"text {q['id']}"} for q in QUESTIONS]
    path = write_jsonl("background.jsonl", rows[::-1])
    assert read_backgrounds(path, QUESTIONS) == [f"text {number}" for number in range(5)]
    unknown = f"background.jsonl: no background for id 3 ({QUESTIONS[3]['question']})"
    for changed, expected in (
        ({"id": "9"}, unknown),
        ({"question": "Else?"}, unknown),
        ({"background": None}, "background.jsonl:4: field 'background': missing, or not text"),
    ):
        path = write_jsonl("background.jsonl", [*rows[:3], {**rows[3], **changed}, rows[4]])
        with pytest.raises(UserError, match=re.escape(expected)):
            read_backgrounds(path, QUESTIONS)
