"""The table scripts say what is missing before they compute anything."""

import os
import subprocess
from pathlib import Path

import pytest

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
