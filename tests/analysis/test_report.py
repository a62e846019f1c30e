"""The report: its numbers, what it says is missing, and the page without a browser (test_report_browser.py has one)."""

import re
import sys
import tomllib

import pytest
from conftest import REPOSITORY, each
from made_up_runs import answer, predictions, whole_run

from gainRAG.analysis import figures, measures, report
from gainRAG.analysis.contents import collect
from gainRAG.analysis.gap import measure
from gainRAG.analysis.page import TEMPLATES, render
from gainRAG.analysis.parts import Grid, Missing, Plot
from gainRAG.analysis.questions import clip
from gainRAG.analysis.runs import QuestionSet
from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import read_records, write_json, write_records
from gainRAG.common.settings import settings_file, stage_settings

HOSTILE = "<script>alert(1)</script>\"'&</td> $x$ \u202e\u2028"


def parts(found, kind) -> list:
    return [part for section in found.sections for part in section.parts if isinstance(part, kind)]


def question_set(work, name="A_test") -> QuestionSet:
    return QuestionSet(work, work / "answers" / name)


# --- numbers ------------------------------------------------------------------------------------------------------


@each(
    ("a", "b", "wanted"),
    [
        ([1, 2, 3], [10, 20, 30], 1),
        ([1, 2, 3], [30, 20, 10], -1),
        ([1, 2, 2, 3], [1, 3, 2, 4], 0.9486832980505138),  # Pearson's correlation of 1, 2.5, 2.5, 4 and 1, 3, 2, 4
        ([1, 1, 1], [1, 2, 3], None),
    ],
)
def test_rank_correlation(a, b, wanted):
    assert measures.rank_correlation(a, b) == (wanted and pytest.approx(wanted))


def test_holm_stops_at_the_first_p_that_is_too_high():
    assert measures.holm([0.04, 0.001, 0.02]) == [True, True, True]
    assert measures.holm([0.04, 0.001, 0.03]) == [False, True, False]
    assert measures.holm([0.06]) == [False]


@each(
    ("ours", "said"),
    [
        (["Paris"] * 30, "GainRAG answers more questions of A_test correctly than standard RAG (100.0 % of 30"),
        (["Rome"] * 30, "GainRAG answers fewer questions of A_test correctly than standard RAG (0.0 % of 30"),
        (["Paris", "Rome"] * 15, "GainRAG and standard RAG cannot be told apart by the answers on A_test (50.0 %"),
    ],
)
def test_the_sentence_says_what_the_paired_test_supports(tmp_path, ours, said):
    answer(tmp_path, "A_test", {"standard_rag": ["Rome", "Paris"] * 15, "gainrag": ours})
    assert collect(tmp_path, 0).result.startswith(said)


def test_several_sets_are_counted_in_one_sentence(tmp_path):
    answer(tmp_path, "A_test", {"standard_rag": ["Rome"] * 20, "gainrag": ["Paris"] * 20})
    answer(tmp_path, "B_test", {"standard_rag": ["Paris"] * 20, "gainrag": ["Rome"] * 20})
    answer(tmp_path, "C_test", {"standard_rag": ["Rome"] * 20, "gainrag": ["Rome"] * 20})
    said = collect(tmp_path, 0).result
    assert "Of 3 question sets" in said and "on 1 and fewer on 1; on 1 the paired test finds no difference" in said


def test_differences_are_paired_and_the_best_method_comes_first(tmp_path):
    said = {"no_retrieval": ["Rome"] * 4, "standard_rag": ["Paris", "Rome", "Rome", "Rome"], "gainrag": ["Paris"] * 4}
    answer(tmp_path, "A_test", said)
    found = question_set(tmp_path)
    assert measures.best_first(found) == ["gainrag", "standard_rag", "no_retrieval"]
    rows = {(row["method"], row["metric"]): row for row in measures.differences(found)}
    assert set(rows) == {(method, metric) for method in ("gainrag", "no_retrieval") for metric in ("cover_em", "f1")}
    assert rows["gainrag", "cover_em"]["difference"] == 75
    assert rows["no_retrieval", "cover_em"]["difference"] == -25
    table = collect(tmp_path, 0).sections[0].parts[0]
    assert [row[0] for row in table.rows] == ["GainRAG", "Standard RAG", "No retrieval"]


def test_scores_gains_and_origins_are_those_of_the_candidates(tmp_path):
    found = question_set(whole_run(tmp_path))
    assert measures.correlation(list(measures.scores_and_gains(found, "trained")))["mean"] == pytest.approx(1)
    assert found.gains_of("gainrag")[:2] == pytest.approx([-2.1972246, -1.0986123])  # -log(2^3 + 1), -log(2^1 + 1)
    groups, shares = measures.origins(found)
    assert groups == ["1", "2", "3", "pseudo"]
    assert shares["gainrag"] == pytest.approx([100 * n / 30 for n in (7, 7, 8, 8)])


def test_questions_on_which_the_two_differ_come_first_and_long_texts_are_cut(tmp_path):
    answer(
        tmp_path, "A_test", {"standard_rag": ["Paris", "Rome", "Paris"], "gainrag": ["Paris", "x" * 100_000, "Rome"]}
    )
    table = collect(tmp_path, 2).questions
    assert [one["verdict"] for one in table["questions"]] == ["hurt", "both right"]
    assert table["total"] == 3 and table["methods"][0] == ["gainrag", "GainRAG"]
    assert clip("x" * 100_000).endswith("[... 100,000 characters in all]") and len(clip("x" * 100_000)) < 700
    assert collect(tmp_path, 0).questions["questions"] == []


# --- what is missing, and what is refused -------------------------------------------------------------------------


def test_what_was_not_computed_is_named_with_its_command(tmp_path):
    answer(tmp_path, "A_test", {"no_retrieval": ["Paris"]})
    found = collect(tmp_path, 5)
    commands = {part.command for part in parts(found, Missing)}
    for script in ("rag_generation", "selector_finetune", "table_topk", "figure_gap"):
        assert any(f"scripts/{script}.sh" in command for command in commands), script
        assert (REPOSITORY / f"scripts/{script}.sh").exists()
    assert found.result is None
    text = render(found)
    assert text.count("Not computed: ") == len(parts(found, Missing)) and "No result in one sentence" in text
    [missing] = parts(collect(whole_run(tmp_path / "whole"), 5), Missing)
    assert missing.command == "bash scripts/table_topk.sh"


@each(
    ("name", "content", "said"),
    [
        ("selector/trainer_state.json", {"log_history": 5}, "trainer_state.json: no list 'log_history'"),
        (
            "selector/trainer_state.json",
            {"log_history": [{"step": 1, "loss": "x", "learning_rate": 0}]},
            "entry 0 of 'log_history' has something that is no number",
        ),
        ("selector/training.settings.json", [1], "training.settings.json: wanted one JSON object"),
        ("figure_gap.json", {"rows": [{"gap": 1}]}, "figure_gap.json: not a figure by gainRAG.analysis.gap"),
        ("table_main.json", {"title": "t", "cells": [1]}, "table_main.json: not a table by gainRAG.analysis.tables"),
        ("scored/trained/A_test.jsonl", None, "A_test.jsonl:1: field 'ctxs[0].selector_score': missing"),
    ],
)
def test_files_of_another_shape_are_named(tmp_path, name, content, said):
    whole_run(tmp_path)
    if content is None:
        write_records(tmp_path / name, read_records(tmp_path / "retrieved/A_test.jsonl"))
    else:
        write_json(tmp_path / name, content)
    with pytest.raises(UserError, match=re.escape(said)):
        collect(tmp_path, 5)


def test_methods_that_answered_different_questions_are_refused(tmp_path):
    folder = answer(tmp_path, "A_test", {"no_retrieval": ["Paris"], "gainrag": ["Paris"]})
    write_records(folder / "A_test" / "gainrag.jsonl", [{**predictions(["Paris"])[0], "id": "other"}])
    with pytest.raises(UserError, match="answered different questions"):
        collect(tmp_path, 1)


def test_answers_from_another_selection_are_refused(tmp_path):
    work = whole_run(tmp_path)
    path, selected = work / "answers" / "A_test" / "gainrag.jsonl", work / "selected" / "gainrag" / "A_test.jsonl"
    write_json(settings_file(path), stage_settings("run_baselines", {"selection": selected}))
    collect(work, 1)
    records = list(read_records(selected))
    write_records(selected, [{**record, "ctxs": record["ctxs"][::-1], "level": "new"} for record in records])
    for look in (lambda: collect(work, 1), lambda: measure(work, "A_test", ["gainrag"])):
        with pytest.raises(UserError, match=r"answers from another selection than .*, which was made anew since"):
            look()


def test_a_figure_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "x.pdf").mkdir()
    with pytest.raises(UserError, match="x.pdf"):
        figures.write_figure(figures.draw_training([{"step": 1, "loss": 1, "learning_rate": 0}]), tmp_path, "x")


def test_mistakes_end_with_code_2_and_one_line(run_python):
    for arguments, said in (
        (["report", "--work", "nowhere", "--output", "r.html"], "nowhere: no answers"),
        (["report", "--work", ".", "--output", "r.pdf"], "ends in .html"),
    ):
        done = run_python("-m", f"gainRAG.analysis.{arguments[0]}", *arguments[1:])
        assert done.returncode == 2
        assert said in done.stderr and "Traceback" not in done.stderr


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["report", "--work", str(tmp_path)])
    with pytest.raises(UserError, match=re.escape("not installed: pip install -e '.[report]'")):
        report.main()


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_every_figure(tmp_path, monkeypatch):
    work, page, folder = whole_run(tmp_path / "run"), tmp_path / "r.html", tmp_path / "figures"
    command = ["report", "--work", work, "--output", page, "--figures", folder]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    report.main()
    names = {plot.name for plot in parts(collect(work, 5), Plot)}
    assert {
        "A_test-scores",
        "A_test-differences",
        "A_test-selector",
        "A_test-origins",
        "training",
        "figure-gap",
    } <= names
    assert {path.name for path in folder.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("pdf", "png")}
    assert all(path.read_bytes()[:4] in (b"%PDF", b"\x89PNG") for path in folder.iterdir())
    written = page.read_text("utf-8")
    assert written == render(collect(work, 1000))  # the same bytes, figures included
    assert written.count("data:image/svg+xml;base64,") == len(names)


def test_hostile_texts_are_escaped_and_nothing_is_loaded(tmp_path):
    whole_run(tmp_path, text=HOSTILE)
    answer(tmp_path, "B_test", {"gainrag": ["Paris"], "standard_rag": ["Rome"]}, model=HOSTILE)
    score = {"mean": 1e300, "low": -1e300, "high": 1e300}
    cell = {"dataset": HOSTILE, "method": HOSTILE, "label": HOSTILE, "metric": "cover_em", "paper": None, "n": 3}
    cells = [{**cell, "K": k, "ours": score, "difference": None} for k in (1, 2)]
    write_json(tmp_path / "table_topk.json", {"title": HOSTILE, "cells": cells, "notes": [HOSTILE]})
    found = collect(tmp_path, 100)
    assert len(parts(found, Grid)) == 5
    text = render(found)
    assert text.count("<script") == 2  # the questions and our own
    assert "alert(1)<" not in text and "&lt;script&gt;alert(1)" in text
    assert not re.search(r"""(?<!img )(?:src|href)=["'](?!#)|url\(|@import""", text)
    assert text.count("<table") == text.count("</table>") and text.count("<td") == text.count("</td>")


def test_far_numbers_and_odd_names_can_be_drawn():
    row = figures.Interval("a $b$ \x00 \u202e" * 30, "other", 1e300, -1e300, 1e300)
    panel = figures.Panel("$", "$", [row])
    assert "<svg" in figures.as_svg(figures.draw_intervals([panel, panel]))
    assert "<svg" in figures.as_svg(figures.draw_points({"$": [(1e300, -1e300, True)], "none": []}))
    assert "<svg" in figures.as_svg(figures.draw_training([{"step": 1, "loss": 1e300, "learning_rate": 0}]))


def test_the_package_carries_the_templates():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["gainRAG"]
    carried = {path for pattern in patterns for path in (REPOSITORY / "gainRAG").glob(pattern)}
    assert set(TEMPLATES.iterdir()) <= carried and len(list(TEMPLATES.iterdir())) == 3
