"""The paper's tables: what stands in a cell, what stays empty, and what is refused. Runs are made up."""

import json
import re
import sys
from functools import partial
from xml.etree import ElementTree

import pytest
from conftest import each
from made_up_runs import answer, passages, predictions

from gainRAG.analysis import gap, tables
from gainRAG.analysis.contents import collect as collect_report
from gainRAG.analysis.tables import TABLES, collect, markdown
from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import write_json, write_records
from gainRAG.evaluation.paper import NOT_REPRODUCED, PAPER, published
from gainRAG.evaluation.results import summarize
from gainRAG.rag_workflow.picks import METHODS, SELECTED, Picks


@pytest.fixture
def answered(tmp_path):
    """Makes WORK/answers/NAME as run_baselines leaves it, from what each method said."""
    return partial(answer, tmp_path)


def cell(content: dict, **wanted) -> dict:
    found = [one for one in content["cells"] if all(one[name] == value for name, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def run_main(module, monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["module", *map(str, arguments)])
    module.main()


# --- the paper's numbers ------------------------------------------------------------------------------------------


def test_published_means_are_those_of_the_published_scores():
    for method, sets in PAPER.items():
        assert method in METHODS
        for scores in sets.values():
            if scores.keys() >= {"cover_em", "f1", "mean"}:
                assert scores["mean"] == pytest.approx((scores["cover_em"] + scores["f1"]) / 2, abs=0.0051)


def test_rows_are_methods_that_run_baselines_knows_and_all_published_ones_have_a_row():
    rows = {method for table in TABLES.values() for method in table.methods}
    assert rows <= set(METHODS)
    assert set(PAPER) <= rows
    assert "rerank_with_pseudo" in SELECTED


def test_averages_are_filled_where_em_and_f1_are_published():
    assert published("standard_rag", "TriviaQA", "mean") == pytest.approx((62.16 + 61.87) / 2)
    assert published("gainrag", "WebQuestions", "mean") == pytest.approx(40.84)
    assert published("rerank", "NaturalQA", "mean") == 30.73
    assert published("rerank", "NaturalQA", "f1") is None
    for name, less in (("HotpotQA", 1.00), ("2WikiMultiHopQA", 1.90)):
        assert published("plain_ppl", name, "mean") == pytest.approx(published("gainrag", name, "mean") - less)


def test_what_is_not_reproduced_is_listed(answered):
    content = collect("main", [answered("HotpotQA_dev", {"gainrag": ["Paris"]})], ["HotpotQA_dev"])
    text = markdown(content)
    assert text.index("## Not reproduced") > text.index("GainRAG")
    assert all(what in text for what in NOT_REPRODUCED) and "Self-RAG" in text


def test_the_share_of_pseudo_passages_is_shown_for_methods_that_have_them(answered):
    folder = answered("2WikiMultiHopQA_dev", {"gainrag": ["Paris"], "rerank": ["Paris"]})
    content = collect("main", [folder], ["2WikiMultiHopQA_dev"])
    [share] = [one for one in content["cells"] if one["metric"] == "pseudo_share"]
    assert (share["method"], share["paper"], share["ours"]["mean"], share["difference"]) == ("gainrag", 50, 50, 0)


def test_nothing_is_published_for_squad():
    assert not any("SQuAD" in sets for sets in PAPER.values())


# --- cells --------------------------------------------------------------------------------------------------------


def test_a_cell_has_paper_ours_difference_and_count(answered):
    folder = answered("HotpotQA_dev", {"gainrag": ["Paris", "It is Paris", "Rome", "Rome"]})
    content = collect("main", [folder], ["HotpotQA_dev"])
    em = cell(content, method="gainrag", metric="cover_em")
    assert em["paper"] == 39.60
    assert em["ours"]["mean"] == 50
    assert 0 <= em["ours"]["low"] < 50 < em["ours"]["high"] <= 100
    assert em["difference"] == pytest.approx(50 - 39.60)
    assert (em["n"], em["paper_n"]) == (4, 500)
    assert cell(content, method="gainrag", metric="f1")["ours"]["mean"] == pytest.approx(100 * (1 + 0.5) / 4)
    mean = cell(content, method="gainrag", metric="mean")
    assert (mean["paper"], mean["ours"]["mean"]) == (40.79, pytest.approx((50 + 37.5) / 2))
    assert mean["ours"]["low"] < mean["ours"]["mean"] < mean["ours"]["high"]
    assert content["runs"]["HotpotQA_dev"]["model"] == "tiny"


def test_the_papers_one_passage_is_not_compared_with_more(answered):
    folder = answered("HotpotQA_dev", {"gainrag": ["Paris"]}, k=2)
    content = collect("main", [folder], ["HotpotQA_dev"])
    found = cell(content, method="gainrag", metric="cover_em")
    assert (found["paper"], found["difference"], found["ours"]["mean"]) == (None, None, 100)
    assert "1 questions, top 2, tiny" in markdown(content)


def test_what_was_not_run_is_empty_and_what_is_not_published_too(answered):
    folder = answered("SQuAD_test", {"gainrag": ["Paris", "Rome"]})
    content = collect("main", [folder], ["HotpotQA_dev", "SQuAD_test"])
    assert content["runs"]["HotpotQA_dev"] is None
    for one in content["cells"]:
        run = one["dataset"] == "SQuAD_test" and one["method"] == "gainrag"
        assert (one["ours"] is not None) == (one["n"] is not None) == run
        assert one["difference"] is None
        assert (one["paper"] is None) or one["dataset"] == "HotpotQA_dev"
    text = markdown(content)
    assert "Not run." in text
    assert re.search(r"\| GainRAG +\| EM \(cover_em\) +\| 39\.60 \| +\| +\| +\|\n", text)
    assert re.search(r"\| GainRAG +\| EM \(cover_em\) +\| +\| 50\.00 \[[^]]+\] +\| +\| 2 of 10570 +\|\n", text)
    assert "None" not in text


def test_ablation_takes_methods_of_several_folders_together(answered):
    first = answered("NaturalQA_test", {"gainrag": ["Paris", "Rome"], "rerank": ["Rome", "Rome"]})
    second = answered("NaturalQA_test", {"rerank_with_pseudo": ["Paris", "Paris"]}, "more")
    content = collect("ablation", [first, second], ["NaturalQA_test"])
    assert cell(content, method="rerank", metric="mean")["ours"]["mean"] == 0
    without = cell(content, method="rerank_with_pseudo", metric="mean")
    assert (without["paper"], without["ours"]["mean"]) == (31.90, 100)
    assert cell(content, method="plain_ppl", metric="mean")["ours"] is None
    assert any("untrained reranker" in note for note in content["notes"])


def test_topk_has_a_row_for_each_k_and_the_papers_numbers_at_one(answered):
    folders = [
        answered("HotpotQA_dev", {"gainrag": ["Paris"] * k + ["Rome"] * (5 - k)}, f"top{k}", k) for k in (1, 2, 4)
    ]
    content = collect("topk", folders, ["HotpotQA_dev"])
    ours = {k: cell(content, method="gainrag", metric="cover_em", K=k)["ours"] for k in range(1, 6)}
    assert {k: score and score["mean"] for k, score in ours.items()} == {1: 20, 2: 40, 3: None, 4: 80, 5: None}
    assert cell(content, method="gainrag", metric="cover_em", K=1)["paper"] == 39.60
    assert cell(content, method="gainrag", metric="cover_em", K=2)["paper"] is None
    assert cell(content, method="gainrag", metric="hit_at_k", K=2)["ours"]["mean"] == 50
    assert "GainRAG, K = 4" in markdown(content)


@pytest.mark.parametrize("fact", ["model", "prompts_hash", "seed"])
def test_cells_of_different_runs_are_not_put_side_by_side(answered, fact):
    first = answered("NaturalQA_test", {"gainrag": ["Paris"]})
    second = answered("NaturalQA_test", {"plain_ppl": ["Paris"]}, "more", **{fact: "other"})
    with pytest.raises(UserError, match=f"NaturalQA_test: {fact} differs"):
        collect("ablation", [first, second], ["NaturalQA_test"])


def test_predictions_that_do_not_fit_the_results_are_refused(answered):
    folder = answered("NaturalQA_test", {"gainrag": ["Paris", "Rome"]})
    write_records(folder / "NaturalQA_test" / "gainrag.jsonl", predictions(["Paris"]))
    with pytest.raises(UserError, match="1 predictions, but results.json speaks of 2"):
        collect("main", [folder], ["NaturalQA_test"])


def test_predictions_of_another_run_are_refused(answered):
    folder = answered("NaturalQA_test", {"gainrag": ["Paris", "Rome"]})
    write_records(folder / "NaturalQA_test" / "gainrag.jsonl", predictions(["Rome", "Rome"]))
    with pytest.raises(UserError, match=r"gainrag.jsonl: its \w+ is 0\.0000, but results.json says 0\.5000"):
        collect("main", [folder], ["NaturalQA_test"])


def test_results_of_another_shape_are_refused(tmp_path):
    write_json(tmp_path / "NaturalQA_test" / "results.json", {"gainrag": {"questions": 3}})
    with pytest.raises(UserError, match="'gainrag' lacks"):
        collect("main", [tmp_path], ["NaturalQA_test"])


def test_the_command_writes_both_files(answered, tmp_path, monkeypatch, capsys):
    folder = answered("WebQuestions_test", {"no_retrieval": ["Paris"]})
    output = tmp_path / "table_main.json"
    run_main(
        tables, monkeypatch, "main", "--answers", folder, "--datasets", "WebQuestions_test", "--output_path", output
    )
    content = json.loads(output.read_text("utf-8"))
    assert cell(content, method="no_retrieval", metric="f1")["paper"] == 35.90
    assert output.with_suffix(".md").read_text("utf-8") == markdown(content) == capsys.readouterr().out[:-1]


@each(
    ("arguments", "said"),
    [
        (
            ["tables", "main", "--answers", "nowhere", "--datasets", "A_b", "--output_path", "t.json"],
            "nowhere: no NAME",
        ),
        (["tables", "main", "--answers", ".", "--datasets", "A_b", "--output_path", "t.md"], "ends in .json"),
        (["gap", "--work", "nowhere", "--datasets", "A_b", "--output_path", "g.json"], "nowhere: no answers"),
        (["report", "--work", "nowhere", "--output", "r.html"], "nowhere: no answers"),
        (["report", "--work", ".", "--output", "r.pdf"], "ends in .html"),
    ],
)
def test_mistakes_end_with_code_2_and_one_line(run_python, arguments, said):
    done = run_python("-m", f"gainRAG.analysis.{arguments[0]}", *arguments[1:])
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_task_with_its_own_metric_is_judged_by_it_everywhere(answered, tmp_path):
    """ "A" normalises to nothing, so cover_em counts every answer to it as right."""
    folder = answered("ARC_test", {"standard_rag": ["gibberish", "A"]}) / "ARC_test"
    records = [
        {**record, "answers": ["A"], "cover_em": 1.0, "accuracy": float(record["prediction"] == "A")}
        for record in predictions(["gibberish", "A"])
    ]
    write_records(folder / "standard_rag.jsonl", records)
    facts = {"model": "tiny", "prompts_hash": "abc", "seed": 42, "split": "ARC"}
    write_json(folder / "results.json", {"standard_rag": {**summarize(records, **facts, K_docs=1), "picks": {}}})
    content = collect("main", [tmp_path / "answers"], ["ARC_test"])
    assert cell(content, method="standard_rag", metric="accuracy")["ours"]["mean"] == 50
    assert not {one["metric"] for one in content["cells"]} & {"cover_em", "f1", "mean"}
    write_records(tmp_path / "retrieved" / "ARC_test.jsonl", passages(["Paris", "Paris"]))
    [row] = gap.measure(tmp_path, "ARC_test", ["standard_rag"])
    assert row["gap"]["right_though_not_held"]["mean"] == 50
    report = collect_report(tmp_path, 2)
    said = [one["said"]["standard_rag"] for one in report.questions["questions"]]
    assert [(one["text"], one["right"]) for one in said] == [("gibberish", False), ("A", True)]
    assert report.sections[0].parts[0].header[1] == "accuracy"


# --- figure 1 -----------------------------------------------------------------------------------------------------


@pytest.fixture
def retrieved(write_jsonl):
    """Picks of standard RAG, a passage a question."""
    return lambda texts: Picks(1, write_jsonl("retrieved.jsonl", passages(texts)), {})


def test_gap_counts_wrong_though_held_and_right_though_not(retrieved):
    said = predictions(["Paris", "Rome", "Rome", "Paris", "Rome"])
    held = ["It is Paris.", "It is Paris.", "Paris, I think", "nothing", "nothing"]
    found = gap.gap(said, retrieved(held), "standard_rag")
    assert (found["n"], found["held"]) == (5, 3)
    means = {name: found[name]["mean"] for name in gap.SHARES}
    assert means == pytest.approx(
        {
            "wrong_though_held": 40,
            "right_though_not_held": 20,
            "wrong_of_held": 200 / 3,
            "not_held_of_right": 50,
            "right_of_not_held": 50,
        }
    )


def test_gap_of_an_empty_group_is_empty(retrieved):
    found = gap.gap(predictions(["Paris"]), retrieved(["Paris"]), "standard_rag")
    assert found["right_of_not_held"] is None
    assert found["wrong_of_held"]["mean"] == 0


def test_gap_needs_the_passages_of_every_question(retrieved):
    with pytest.raises(UserError, match="retrieved.jsonl: lacks question 'q1', which was answered"):
        gap.gap(predictions(["Paris", "Rome"]), retrieved(["Paris"]), "standard_rag")


def test_figure_reads_a_run_and_leaves_missing_methods_empty(answered, tmp_path, monkeypatch):
    answered("NaturalQA_test", {"standard_rag": ["Rome", "Paris"], "gainrag": ["Paris", "Paris"]})
    write_records(tmp_path / "retrieved" / "NaturalQA_test.jsonl", passages(["Paris", "London"]))
    write_records(tmp_path / "selected" / "gainrag" / "NaturalQA_test.jsonl", passages(["Paris", "Paris"]))
    output = tmp_path / "figure_gap.json"
    run_main(gap, monkeypatch, "--work", tmp_path, "--datasets", "NaturalQA_test", "--output_path", output)
    rows = {row["method"]: row["gap"] for row in json.loads(output.read_text("utf-8"))["rows"]}
    assert rows["standard_rag"]["wrong_though_held"]["mean"] == 50
    assert rows["standard_rag"]["right_though_not_held"]["mean"] == 50
    assert rows["gainrag"]["wrong_though_held"]["mean"] == 0
    assert rows["rerank"] is None
    assert ElementTree.fromstring(output.with_suffix(".svg").read_text("utf-8")).tag.endswith("svg")
    assert "Rerank" in output.with_suffix(".md").read_text("utf-8")
