"""Pseudo-passages: what counts as one, and the file that keeps them."""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import each

from gainRAG.common.cli import UserError
from gainRAG.common.parallel import WorkerOptions
from gainRAG.llm_inference import background
from gainRAG.llm_inference import engine as engines
from gainRAG.llm_inference.background import (
    PseudoPassageOptions,
    add_background_arguments,
    pseudo_passage,
    pseudo_passage_lookup,
    pseudo_passage_options,
    write_pseudo_passage_file,
)
from gainRAG.llm_inference.engine import EngineOptions, GenerationOptions

QUESTIONS = [{"id": number, "question": f"Who is number {number}?", "answers": ["x"]} for number in range(5)]


@each("text", ["", "  \n", "N/A", " n/a. ", "NA", "None", "N/A..."])
def test_knowing_nothing_gives_no_passage(text):
    assert pseudo_passage(text) is None
    assert pseudo_passage(text, keep_na=True)["text"] == (text.strip() or "N/A")


def test_thoughts_of_a_file_written_elsewhere_are_left_out():
    assert pseudo_passage("<think>The Seine?</think>\n\nParis lies on it.")["text"] == "Paris lies on it."
    for text in ("I am unsure.\n</think>\n\nN/A", "<think> The Seine?"):
        assert pseudo_passage(text) is None
        assert pseudo_passage(text, keep_na=True)["text"] == "N/A"


def test_a_text_becomes_a_candidate():
    wanted = {"id": "pseudo", "title": "", "text": "N/A is a note.", "score": None, "is_pseudo": True}
    assert pseudo_passage(" N/A is a note.\n") == wanted


@pytest.fixture
def write_file(tiny_llama, write_jsonl):
    """Writes pseudo-passages of QUESTIONS to a path."""
    data_path = write_jsonl("questions.jsonl", QUESTIONS)
    engine = EngineOptions(str(tiny_llama), dtype="float32", device="cpu")
    generation = GenerationOptions("HotpotQA", max_new_tokens=6)

    def write(path, **changes):
        return write_pseudo_passage_file(
            path, QUESTIONS, data_path, engine, replace(generation, **changes), WorkerOptions()
        )

    return write


def test_the_flags_become_options():
    parser = argparse.ArgumentParser()
    add_background_arguments(parser)
    assert pseudo_passage_options(**vars(parser.parse_args([]))) == PseudoPassageOptions()
    flags = ["--no_pseudo", "--background_path", "b.jsonl", "--background_tokens", "512", "--keep_na"]
    wanted = PseudoPassageOptions(wanted=False, path=Path("b.jsonl"), max_new_tokens=512, keep_na=True)
    assert pseudo_passage_options(**vars(parser.parse_args(flags))) == wanted


def test_pseudo_passages_are_written_once(write_file, tmp_path, read_jsonl, monkeypatch):
    path = tmp_path / "background.jsonl"
    texts = write_file(path)
    assert [(row["id"], row["question"]) for row in read_jsonl(path)] == [(q["id"], q["question"]) for q in QUESTIONS]
    assert [row["background"] for row in read_jsonl(path)] == texts
    assert len(set(texts)) > 1
    monkeypatch.setattr(engines, "load_engine", lambda *_: pytest.fail("the LLM was loaded again"))
    assert write_file(path) == texts
    with pytest.raises(UserError, match="max_new_tokens: 6 then, 7 now"):
        write_file(path, max_new_tokens=7)


def test_an_interrupted_file_resumes_alike(write_file, tmp_path, monkeypatch):
    monkeypatch.setattr(background, "CHUNK", 2)
    whole, path = tmp_path / "whole.jsonl", tmp_path / "background.jsonl"
    write_file(whole)
    append = background.StageOutput.append

    def stop(self, records):
        if any(record["id"] == 3 for record in records):
            raise KeyboardInterrupt
        append(self, records)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(background.StageOutput, "append", stop)
        write_file(path)
    assert not path.exists()
    write_file(path)
    assert path.read_bytes() == whole.read_bytes()


def test_pseudo_passages_are_found_by_id_and_wording(write_jsonl):
    rows = [{"id": str(q["id"]), "question": q["question"], "background": f"text {q['id']}"} for q in QUESTIONS]
    path = write_jsonl("background.jsonl", rows[::-1])
    assert [*map(pseudo_passage_lookup(path), QUESTIONS)] == [f"text {number}" for number in range(5)]
    unknown = f"background.jsonl: no pseudo-passage for id 3 ({QUESTIONS[3]['question']}); if --skip_too_long"
    for changed, expected in (
        ({"id": "9"}, unknown),
        ({"question": "Else?"}, unknown),
        ({"background": None}, "background.jsonl:4: field 'background': missing, or not text"),
    ):
        path = write_jsonl("background.jsonl", [*rows[:3], {**rows[3], **changed}, rows[4]])
        with pytest.raises(UserError, match=re.escape(expected)):
            [*map(pseudo_passage_lookup(path), QUESTIONS)]
