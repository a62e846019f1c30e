"""data/prepare_trivia.py: quiz questions that can be asked without their choices."""

import importlib.util
import sys
from pathlib import Path

import pytest

from gainRAG.common.cli import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("prepare_trivia", REPOSITORY / "data" / "prepare_trivia.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

KEPT = "#Q Which river runs\n  through Rome?\n^ The Tiber\nA The Po\nB The Tiber\n\n"
LEFT_OUT = [
    "#Q Which of these is a river?\n^ The Po\n",
    "#Q The ___ runs through Rome.\n^ Tiber\n",
    "#Q Is the Po a river?\n^ Yes\n",
    "#Q Where is the Po?\n^ None of these\n",
    "#Q What is \ufffd?\n^ A sign\n",
    "#Q\n^ No question\n",
    "^ No question before it\n",
]


def test_questions_that_need_their_choices_are_left_out(monkeypatch, tmp_path, read_jsonl):
    (tmp_path / "in").mkdir()
    flags = ["--data_path", tmp_path / "in", "--output_path", tmp_path / "out.jsonl"]
    monkeypatch.setattr(sys, "argv", ["prepare_trivia.py", *map(str, flags)])
    with pytest.raises(UserError, match="no file there has a line '#Q QUESTION'"):
        script.main()
    (tmp_path / "in" / "rivers").write_text("".join([*LEFT_OUT, KEPT, *LEFT_OUT]), "utf-8")
    (tmp_path / "in" / "rome").write_bytes(KEPT.replace("Tiber\nA", "Po\nA").encode() + b"#Q Who was \xff?\n^ Ann\n")
    script.main()
    assert read_jsonl(tmp_path / "out.jsonl") == [
        {"question": "Which river runs through Rome?", "answers": ["The Tiber"]}
    ]
