"""What every entry point shares: argument types, the help text, and how a run ends."""

import argparse
import logging

import pytest
from conftest import each

from gainRAG.common import cli
from gainRAG.common.cli import UserError, run_stage, stage_parser


@pytest.fixture(autouse=True)
def quiet_logging(monkeypatch):
    """run_stage sets up logging for its process; the tests' own stays as it is."""
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)


@each(
    ("kind", "text", "value"),
    [
        (cli.positive_int, "1", 1),
        (cli.non_negative_int, "0", 0),
        (cli.non_negative_float, "0", 0.0),
        (cli.non_negative_float, "6e-5", 6e-5),
        (cli.positive_float, "0.5", 0.5),
    ],
)
def test_numbers_that_are_taken(kind, text, value):
    assert kind(text) == value


@each(
    ("kind", "text"),
    [
        *((cli.positive_int, text) for text in ("0", "-1", "1.5", "", "ten", "nan", "9" * 400, "9" * 5000)),
        *((cli.non_negative_int, text) for text in ("-1", "0.0")),
        *((cli.non_negative_float, text) for text in ("-0.1", "nan", "inf", "-inf", "1e999", "x")),
        *((cli.positive_float, text) for text in ("0", "-1", "nan")),
    ],
)
def test_numbers_that_are_refused(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a (whole|finite) number (from|above) [01]") as refused:
        kind(text)
    assert len(str(refused.value)) < 100


def test_the_help_shows_docstring_and_defaults(capsys):
    parser = stage_parser("First line.\n\n    python -m gainRAG.x\n")
    parser.add_argument("--alpha", type=float, default=0.5, help="the weight")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "First line.\n\n    python -m gainRAG.x\n" in shown
    assert "the weight (default: 0.5)" in shown
    with pytest.raises(SystemExit) as refused:
        parser.parse_args(["--alp", "1"])  # an abbreviation would change its meaning with the next flag
    assert refused.value.code == 2


def test_a_users_mistake_ends_with_one_line_and_code_2(capsys):
    def main():
        raise UserError("data.jsonl:3: field 'question': missing")

    with pytest.raises(SystemExit) as ended:
        run_stage(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: data.jsonl:3: field 'question': missing\n"


def test_what_a_file_holds_cannot_break_the_line_or_steer_the_terminal():
    assert str(UserError("d.tsv:1: found a\nb\x1b[2J\u2028\ud800 é")) == "d.tsv:1: found a\\nb\\x1b[2J\\u2028\\ud800 é"


def test_an_interruption_ends_with_130(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_stage(main)
    assert ended.value.code == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_stage(lambda: 1 / 0)


def test_a_run_that_ends_well_just_returns(capsys):
    ran = []
    run_stage(lambda: ran.append(1))
    assert ran == [1]
    assert capsys.readouterr() == ("", "")
