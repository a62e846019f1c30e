"""The table scripts: what they say of missing inputs, and all of them run whole on tiny models."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import SENTENCES

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NAMES = ["table_main", "table_ablation", "table_topk", "figure_gap"]


def run_script(name: str, work: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("SELECTOR", "DATASETS", "LIMIT")},
        "WORK": str(work),
        "QUESTIONS": str(work / "questions"),
        **variables,
    }
    return subprocess.run(["bash", SCRIPTS / f"{name}.sh"], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_selector_is_named_with_the_scripts_that_train_it(name, tmp_path):
    done = run_script(name, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'selector'}: no trained selector there")
    assert "scripts/selector_finetune.sh" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_question_sets_that_are_not_there_are_named(name, tmp_path):
    (tmp_path / "selector").mkdir()
    (tmp_path / "selector" / "config.json").write_text("{}")
    done = run_script(name, tmp_path, DATASETS="NaturalQA_test SQuAD_test")
    assert done.returncode == 2
    assert "SKIPPED: SQuAD_test" in done.stderr
    assert "none of the question sets is there: NaturalQA_test SQuAD_test" in done.stderr


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, tiny_llama, tiny_reranker):
    """A folder as the stages leave it, with retrieved test questions and kept training questions, and the variables
    that name tiny models; the selector in the tables is the untrained one."""
    work = tmp_path_factory.mktemp("tables")
    passages = [{"id": str(n), "title": f"T{n}", "text": text} for n, text in enumerate(SENTENCES)]
    asked = [
        {"id": f"q{n}", "question": f"{text[:20]}?", "answers": ["river", "e"]} for n, text in enumerate(SENTENCES)
    ]

    def write(name: str, records: list[dict]) -> None:
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")

    write(
        "retrieved/NaturalQA_test.jsonl", [{**question, "ctxs": passages[n:]} for n, question in enumerate(asked[:4])]
    )
    gains = [{**passage, "PPL_CD": 2.0 + n, "retrieved_ppl": 9.0 - n} for n, passage in enumerate(passages)]
    write("kept/NaturalQA_train.jsonl", [{**question, "passages": gains} for question in asked])
    variables = {
        "LLM": tiny_llama,
        "SELECTOR_START": tiny_reranker,
        "SELECTOR": tiny_reranker,
        "LLM_FLAGS": "--backend hf --device cpu --dtype float32",
        "SELECTION_FLAGS": "--background_tokens 8",
        "GENERATION_FLAGS": "--max_new_tokens 4",
        "SPEED_FLAGS": "--use_cpu True",
        "BATCH": "2",
        "EPOCHS": "1",
        "N_DOCS": "2",
        "GROUP_SIZE": "4",
        "QUERY_MAX_LEN": "32",
        "PASSAGE_MAX_LEN": "32",
        "LIMIT": "3",
        "DATASETS": "NaturalQA_test SQuAD_test",
    }
    return work, {name: str(value) for name, value in variables.items()}


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("table_main", {"no_retrieval", "standard_rag", "rerank", "gainrag_no_pseudo", "gainrag"}),
        ("table_ablation", {"rerank", "gainrag", "gainrag_no_pseudo", "rerank_with_pseudo", "plain_ppl"}),
        ("table_topk", {"standard_rag", "rerank", "gainrag"}),
        ("figure_gap", {"standard_rag", "rerank", "gainrag"}),
    ],
)
def test_a_small_run_fills_the_cells_it_ran_and_leaves_the_rest_empty(name, methods, tiny_run):
    work, variables = tiny_run
    done = run_script(name, work, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((work / f"{name}.json").read_text("utf-8"))
    filled = {"cells": "ours", "rows": "gap"}
    kind = "rows" if name == "figure_gap" else "cells"
    ran = [cell for cell in found[kind] if cell[filled[kind]]]
    assert {cell["method"] for cell in ran if cell["dataset"] == "NaturalQA_test"} == methods
    assert not [cell for cell in ran if cell["dataset"] == "SQuAD_test"]
    assert {cell["gap"]["n"] if kind == "rows" else cell["n"] for cell in ran} == {3}
    assert "NaturalQA" in (work / f"{name}.md").read_text("utf-8")
    assert not list(work.rglob("*unfinished*"))
