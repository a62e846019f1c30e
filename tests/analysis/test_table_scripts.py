"""The scripts: settings and flags as they reach the stages, what is said of missing inputs, and the table scripts whole
on tiny models."""

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import SENTENCES, each
from safetensors.torch import load_file, save_file

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NAMES = ["table_main", "table_ablation", "table_topk", "figure_gap"]
STAGES = ["retrieval", "draw_questions", "llm_supervision", "selector_engine", "rag_generation", "selector_quality"]


def run_script(name: str, work: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("SELECTOR", "DATASETS", "LIMIT", "CONFIG")},
        "WORK": str(work),
        "QUESTIONS": str(work / "questions"),
        **variables,
    }
    return subprocess.run(["bash", SCRIPTS / f"{name}.sh", *arguments], env=environment, capture_output=True, text=True)


@pytest.fixture
def recorder(tmp_path):
    """Variables with which the scripts' commands are not run: each becomes a line of words in a file, tab between."""
    log = tmp_path / "commands"
    log.touch()
    write = f'() {{ printf "%s\\t" "$@" >>"{log}"; echo >>"{log}"; }}'
    return {"BASH_FUNC_python%%": write, "BASH_FUNC_torchrun%%": write, "GPUS": "1"}, log


def commands(log: Path) -> list[list[str]]:
    return [line.split("\t")[:-1] for line in log.read_text().splitlines()]


def options(command: list[str]) -> dict[str, str]:
    """Each flag's next word."""
    return {word: command[place + 1 : place + 2][0] for place, word in enumerate(command[:-1]) if word.startswith("--")}


@each("name", STAGES)
def test_without_names_a_script_says_what_it_wants(name, tmp_path, recorder):
    variables, log = recorder
    done = run_script(name, tmp_path, **variables)
    assert done.returncode == 2
    assert f"bash scripts/{name}.sh " in done.stderr
    assert run_script(name, tmp_path, "--help").returncode == 0
    missing = run_script(name, tmp_path, "NoSuch_set", **variables)
    assert missing.returncode == 2 and "NoSuch_set.jsonl: no such file" in missing.stderr
    assert not commands(log)


@pytest.fixture
def questions(tmp_path):
    """A run's folder, with a space in its name, that has a question set and a corpus."""
    work = tmp_path / "a run"
    (work / "questions").mkdir(parents=True)
    (work / "questions" / "A_test.jsonl").write_text("{}\n")
    (work / "corpus.tsv").write_text("id\ttext\ttitle\n1\ta\tb\n")
    return work


def test_flags_are_words_whether_from_a_file_or_the_environment(questions, recorder, tmp_path):
    variables, log = recorder
    config = tmp_path / "mine.conf"
    config.write_text(
        'EMBED_FLAGS=(--passage_prefix "passage: ") ENCODER=from-file N_DOCS=7\nLLM_FLAGS="--backend vllm"\n'
    )
    settings = {
        **variables,
        "CONFIG": str(config),
        "PASSAGES": str(questions / "corpus.tsv"),
        "ENCODER": "from-outside",
    }
    assert run_script("retrieval", questions, "A_test", **settings).returncode == 0
    embed, retrieve = commands(log)
    assert options(embed)["--passage_prefix"] == "passage: "
    assert options(retrieve)["--n_docs"] == "7"
    assert options(retrieve)["--model_name_or_path"] == "from-outside"
    assert options(retrieve)["--data_path"] == str(questions / "questions" / "A_test.jsonl")
    log.write_text("")
    done = run_script("retrieval", questions, "A_test", **settings, EMBED_FLAGS='--passage_prefix "a b" --max_length 9')
    assert done.returncode == 0, done.stderr
    assert commands(log)[0][-4:] == ["--passage_prefix", "a b", "--max_length", "9"]
    unclosed = run_script("retrieval", questions, "A_test", **settings, EMBED_FLAGS='--passage_prefix "a')
    assert unclosed.returncode == 2 and "a quotation mark is never closed" in unclosed.stderr


def test_published_vectors_are_used_and_millions_are_not_embedded_unasked(questions, recorder, tmp_path):
    variables, log = recorder
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    corpus = downloads / "psgs_w100.tsv.gz"
    with gzip.open(corpus, "wt") as file:
        file.write("1\ta\tb\n" * 1_000_001)
    settings = {**variables, "DOWNLOADS": str(downloads)}
    refused = run_script("retrieval", questions, "A_test", **settings)
    assert refused.returncode == 2 and "more than a million passages" in refused.stderr
    assert "download_data.sh embeddings" in refused.stderr and not commands(log)
    assert run_script("retrieval", questions, "A_test", **settings, EMBED="1").returncode == 0
    assert [command[1] for command in commands(log)][0].endswith("passage_embed")
    published = downloads / "wikipedia_embeddings" / "contriever-msmarco"
    published.mkdir(parents=True)
    (published / "passages_00").touch()
    log.write_text("")
    assert run_script("retrieval", questions, "A_test", **settings).returncode == 0
    (command,) = commands(log)
    assert options(command)["--passages_embeddings"] == str(published)
    log.write_text("")
    run_script("retrieval", questions, "A_test", **settings, ENCODER="other", EMBED="1")
    assert options(commands(log)[1])["--passages_embeddings"] == str(questions / "embeddings")
    (questions / "embeddings").mkdir()
    (questions / "embeddings" / "shards.jsonl").touch()
    for embed, anew in (("", False), ("1", True)):  # days of work are made anew only when that is asked for
        log.write_text("")
        run_script("retrieval", questions, "A_test", **settings, ENCODER="other", EMBED=embed, OVERWRITE="1")
        embedded, retrieved = commands(log)
        assert ("--overwrite" in embedded) is anew and "--overwrite" in retrieved


def test_an_interrupted_embedding_is_resumed(questions, recorder):
    variables, log = recorder
    settings = {**variables, "PASSAGES": str(questions / "corpus.tsv")}
    (questions / "embeddings").mkdir()
    for name in ("passages_00000.npy", "passages_00000.ids.npy.partial", "shards.jsonl.unfinished"):
        (questions / "embeddings" / name).touch()
    for embed in ("", "1"):
        log.write_text("")
        assert run_script("retrieval", questions, "A_test", **settings, EMBED=embed).returncode == 0
        assert [command[1] for command in commands(log)][0].endswith("passage_embed")


def test_bm25_needs_no_vectors(questions, recorder):
    variables, log = recorder
    settings = {**variables, "PASSAGES": str(questions / "corpus.tsv"), "WORKERS": "8"}
    for flags in ("--retriever bm25", "--retriever=bm25"):
        log.write_text("")
        assert run_script("retrieval", questions, "A_test", **settings, RETRIEVAL_FLAGS=flags).returncode == 0
        (command,) = commands(log)
        assert "--passages_embeddings" not in command and "--num_workers" not in command


@pytest.mark.parametrize(("flags", "workers"), [("--index_type Flat", True), ("--index_type IVF64,Flat", False)])
def test_only_exact_search_is_shared_out(flags, workers, questions, recorder):
    variables, log = recorder
    settings = {**variables, "PASSAGES": str(questions / "corpus.tsv"), "WORKERS": "8", "RETRIEVAL_FLAGS": flags}
    assert run_script("retrieval", questions, "A_test", **settings).returncode == 0
    embed, retrieve = commands(log)
    assert "--num_workers" in embed and ("--num_workers" in retrieve) == workers


def test_vectors_that_a_run_names_are_made_anew_only_when_that_is_asked_for(questions, recorder, tmp_path):
    variables, log = recorder
    named = tmp_path / "vectors"
    named.mkdir()
    (named / "shards.jsonl").touch()
    settings = {**variables, "PASSAGES": str(questions / "corpus.tsv"), "EMBEDDINGS": str(named)}
    for embed in ("", "1"):
        log.write_text("")
        assert run_script("retrieval", questions, "A_test", **settings, EMBED=embed, OVERWRITE="1").returncode == 0
        embedded, retrieved = commands(log)
        assert ("--overwrite" in embedded) is bool(embed) and "--overwrite" in retrieved
        assert options(retrieved)["--passages_embeddings"] == str(named)
    failing = {name: f"{text[:-1]} return 2; }}" for name, text in variables.items() if name.startswith("BASH_FUNC")}
    refused = run_script("retrieval", questions, "A_test", **{**settings, **failing})
    assert refused.returncode == 2 and "EMBED=1 OVERWRITE=1 makes them anew" in refused.stderr


def test_a_folder_of_weights_does_not_take_the_published_vectors(questions, recorder, tmp_path):
    variables, _ = recorder
    published = tmp_path / "downloads" / "wikipedia_embeddings" / "contriever-msmarco"
    published.mkdir(parents=True)
    (published / "passages_00").touch()
    (tmp_path / "downloads" / "psgs_w100.tsv.gz").touch()
    show = f"source '{SCRIPTS}/paths.sh' && published_vectors"
    for encoder in ("contriever-msmarco", "facebook/contriever-msmarco/", "mine/contriever"):
        environment = {**os.environ, **variables, "DOWNLOADS": str(tmp_path / "downloads"), "ENCODER": encoder}
        done = subprocess.run(["bash", "-c", show], env=environment, capture_output=True, text=True)
        assert bool(done.stdout) is (encoder != "mine/contriever"), done.stderr


def test_groups_are_made_as_the_filter_chose(questions, recorder):
    variables, log = recorder
    (questions / "retrieved").mkdir()
    (questions / "retrieved" / "A_train.jsonl").touch()
    refused = run_script("llm_supervision", questions, "A_train", **variables, FILTER_FLAGS="--keep holds --no_pseudo")
    assert refused.returncode == 2 and "FILTER_FLAGS has --no_pseudo, GROUP_FLAGS has not" in refused.stderr
    signals = {"FILTER_FLAGS": "--signal=retrieved_ppl", "GROUP_FLAGS": "--signal PPL_CD"}
    refused = run_script("llm_supervision", questions, "A_train", **variables, **signals)
    assert refused.returncode == 2 and "FILTER_FLAGS has --signal retrieved_ppl" in refused.stderr
    assert not commands(log)
    both = {"FILTER_FLAGS": "--keep holds --no_pseudo", "GROUP_FLAGS": "--no_pseudo --max_ppl 9"}
    assert run_script("llm_supervision", questions, "A_train", **variables, **both).returncode == 0
    assert commands(log)[-1][-3:] == ["--no_pseudo", "--max_ppl", "9"]
    public_code = {"GROUP_FLAGS": "--signal retrieved_ppl"}
    assert run_script("llm_supervision", questions, "A_train", **variables, **public_code).returncode == 0


def test_settings_that_would_be_lost_are_refused(questions, recorder, tmp_path):
    config = tmp_path / "mine.conf"
    settings = {**recorder[0], "CONFIG": str(config), "PASSAGES": str(questions / "corpus.tsv")}
    for line in ("LLM_FLAGS+=(--x)", "if true; then LLM_FLAGS+=(--x); fi", "\tLLM_FLAGS+=(--x) # not LLM_FLAGS=(--y)"):
        config.write_text(f"N_DOCS=3 TASK=x\n{line}\n")
        added = run_script("retrieval", questions, "A_test", **settings)
        assert added.returncode == 2 and "LLM_FLAGS+= would replace what paths.sh gives" in added.stderr
    for text, problem in {
        "N_DOCS=3\r\nTASK=x\r\n": "mine.conf: has line ends of Windows",
        "N_DOCS=3\n LLM = x\n": "mine.conf:2: a space beside the = of LLM: write LLM=VALUE",
        "N_DOCS=3\nLLM= x": "mine.conf:2: a space beside the = of LLM",
        "LLM_FLAG=(--x)\n": "mine.conf: LLM_FLAG is no setting",
        "OWN_FLAG=1 LLM_FLGAS=1 MY_FLAGS=x": "mine.conf: MY_FLAGS is no setting",
    }.items():
        config.write_bytes(text.encode())
        refused = run_script("retrieval", questions, "A_test", **settings, OWN_FLAG="from outside")
        assert refused.returncode == 2 and problem in refused.stderr and not commands(recorder[1])
    config.write_text("EMBED= # nothing = x\nTASK= GAINS= LIMIT=\nif [ 1 = 1 ]; then SPLIT_FLAGS=(--x); fi\n")
    assert run_script("retrieval", questions, "A_test", **settings).returncode == 0
    config.write_text("# LLM_FLAGS+=(--y)\nN_DOCS=3 LLM_FLAGS=(--x)\nLLM_FLAGS+=(--y)\n")
    assert run_script("retrieval", questions, "A_test", **settings).returncode == 0
    alone = run_script("retrieval", questions, "A_test", **recorder[0], RAY_ADDRESS="node1:6379")
    assert alone.returncode == 2 and "RAY_ADDRESS=node1:6379 needs WORKERS" in alone.stderr


def test_a_list_of_sets_may_be_broken_into_lines(tmp_path):
    (tmp_path / "selector").mkdir()
    (tmp_path / "selector" / "config.json").write_text("{}")
    done = run_script("table_main", tmp_path, DATASETS="A_test\n  B_test")
    assert "none of the question sets is there: A_test B_test" in done.stderr


def test_a_missing_selector_or_an_unfinished_training_is_refused(questions, recorder):
    for name in ("gains/A_test.jsonl", "retrieved/A_test.jsonl", "selector/training.settings.json"):
        (questions / name).parent.mkdir()
        if name.startswith("selector"):
            for script in ("selector_quality", "selector_engine"):
                done = run_script(script, questions, "A_test", **recorder[0])
                assert done.returncode == 2 and f"{questions / 'selector'}: no trained selector there" in done.stderr
        (questions / name).touch()
    done = run_script("selector_quality", questions, "A_test", **recorder[0])
    assert done.returncode == 2 and "its training is not finished" in done.stderr


def test_training_groups_name_the_kept_sets_that_are_not_among_them(questions, recorder):
    variables, log = recorder
    for folder, names in {"retrieved": "AC", "kept": "ACD"}.items():
        (questions / folder).mkdir()
        for name in names:
            (questions / folder / f"{name}_train.jsonl").touch()
    one = run_script("llm_supervision", questions, "A_train", **variables)
    assert "training groups of: A_train" in one.stderr
    assert "NOT among them: C_train. To train on all: bash scripts/llm_supervision.sh C_train A_train" in one.stderr
    log.unlink()
    twice = run_script("llm_supervision", questions, "A_train", "C_train", "A_train", **variables)
    assert twice.returncode == 2 and "named twice, which would double its training groups: A_train" in twice.stderr
    assert not log.exists()
    (questions / "kept" / "C_train.jsonl").unlink()
    assert "NOT among them" not in run_script("llm_supervision", questions, "A_train", **variables).stderr


def test_fast_flags_hold_for_every_training(questions, recorder):
    variables, log = recorder
    (questions / "train.jsonl").touch()
    for fast, flag in (("", "--gradient_checkpointing"), ("1", "--torch_compile")):
        log.write_text("")
        assert run_script("selector_finetune", questions, **variables, FAST=fast).returncode == 0
        assert flag in commands(log)[0]


def test_no_more_questions_are_drawn_than_there_are(questions, recorder):
    done = run_script("draw_questions", questions, "A_test", "2", **recorder[0])
    assert done.returncode == 2 and "A_test.jsonl has 1 questions, 2 are wanted" in done.stderr


def test_an_activated_environment_with_this_package_wins_over_the_demos(tmp_path):
    def add_python(folder: Path, has_package: bool) -> None:
        folder.mkdir(parents=True)
        (folder / "python").write_text(f"#!/bin/bash\nexit {int(not has_package)}\n")
        (folder / "python").chmod(0o755)

    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "paths.sh", tmp_path / "scripts")
    add_python(tmp_path / ".venv" / "bin", True)
    add_python(tmp_path / "own" / "bin", True)
    add_python(tmp_path / "other" / "bin", False)

    def python_of(activated: str, variable: str) -> str:
        environment = {"PATH": f"{tmp_path / activated}/bin:{os.environ['PATH']}", variable: str(tmp_path / activated)}
        show = f"source '{tmp_path}/scripts/paths.sh' && type -p python"
        return subprocess.run(["bash", "-c", show], env=environment, capture_output=True, text=True).stdout.strip()

    assert (
        python_of("own", "VIRTUAL_ENV") == python_of("own", "CONDA_PREFIX") == str(tmp_path / "own" / "bin" / "python")
    )
    assert python_of("other", "CONDA_PREFIX") == str(tmp_path / ".venv" / "bin" / "python")
    assert python_of("own", "NO_ENVIRONMENT") == str(tmp_path / ".venv" / "bin" / "python")


@pytest.mark.parametrize(("processes", "each"), [("1", "8"), ("2", "4"), ("8", "1")])
def test_batch_is_what_an_update_sees(processes, each, questions, recorder):
    variables, log = recorder
    (questions / "train.jsonl").touch()
    assert run_script("selector_finetune", questions, **variables, PROCESSES=processes).returncode == 0
    (command,) = commands(log)
    assert options(command)["--nproc_per_node"] == processes
    assert options(command)["--per_device_train_batch_size"] == each
    assert options(command)["--gradient_accumulation_steps"] == "1"


def test_a_batch_that_cannot_be_spread_is_refused(questions, recorder):
    (questions / "train.jsonl").touch()
    done = run_script("selector_finetune", questions, **recorder[0], PROCESSES="3")
    assert done.returncode == 2
    assert "BATCH=8 groups an update cannot be spread evenly over PROCESSES=3" in done.stderr


def test_a_selector_from_elsewhere_is_never_trained_over(questions, recorder):
    variables, log = recorder
    (questions / "train.jsonl").write_text("{}\n")
    selector = questions / "taken"
    selector.mkdir()
    (selector / "config.json").touch()
    settings = {**variables, "SELECTOR": str(selector), "OVERWRITE": "1"}
    refused = run_script("selector_finetune", questions, **settings)
    assert refused.returncode == 2 and f"{selector} was not trained here" in refused.stderr and not commands(log)
    (selector / "training.settings.json").touch()
    assert run_script("selector_finetune", questions, **settings).returncode == 0
    assert "--overwrite_output_dir" in commands(log)[0]


def test_workers_go_to_the_stages_that_have_some(questions, recorder):
    variables, log = recorder
    settings = {**variables, "PASSAGES": str(questions / "corpus.tsv"), "WORKERS": "32", "RAY_ADDRESS": "node1:6379"}
    assert run_script("retrieval", questions, "A_test", **settings).returncode == 0
    for command in commands(log):
        assert options(command)["--num_workers"] == "32" and options(command)["--ray_address"] == "node1:6379"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "figure_gap"])
def test_a_missing_selector_is_named_with_the_scripts_that_train_it(name, tmp_path):
    done = run_script(name, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'selector'}: no trained selector there")
    assert "scripts/selector_finetune.sh" in done.stderr
    assert not list(tmp_path.iterdir())


@each("name", NAMES)
def test_question_sets_that_are_not_there_are_named(name, tmp_path):
    (tmp_path / "selector").mkdir()
    (tmp_path / "selector" / "config.json").write_text("{}")
    sets = "NaturalQA_test SQuAD_test"
    done = run_script(name, tmp_path, DATASETS=sets, TABLE_DATASETS=sets)
    assert done.returncode == 2
    assert "SKIPPED: SQuAD_test" in done.stderr
    assert "none of the question sets is there: NaturalQA_test SQuAD_test" in done.stderr


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, tiny_llama, tiny_reranker, forked_python):
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
        **forked_python,
        "LLM": tiny_llama,
        "SELECTOR_START": tiny_reranker,
        "SELECTOR": tiny_reranker,
        "GPUS": "0",
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
        "TABLE_DATASETS": "NaturalQA_test SQuAD_test",
        "TRAINING": "NaturalQA_train",
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
    tables = work / "first3"  # of LIMIT, so that a trial leaves the whole run's tables alone
    found = json.loads((tables / f"{name}.json").read_text("utf-8"))
    filled = {"cells": "ours", "rows": "gap"}
    kind = "rows" if name == "figure_gap" else "cells"
    ran = [cell for cell in found[kind] if cell[filled[kind]]]
    assert {cell["method"] for cell in ran if cell["dataset"] == "NaturalQA_test"} == methods
    assert not [cell for cell in ran if cell["dataset"] == "SQuAD_test"]
    assert {cell["gap"]["n"] if kind == "rows" else cell["n"] for cell in ran} == {3}
    assert "NaturalQA" in (tables / f"{name}.md").read_text("utf-8")
    assert not list(work.glob("*.json"))
    assert not list(work.rglob("*unfinished*"))


def test_another_selector_makes_anew_only_what_follows_from_it(tiny_run, tmp_path, tiny_reranker):
    work, variables = tiny_run
    (tmp_path / "retrieved").symlink_to(work / "retrieved")
    selector = shutil.copytree(tiny_reranker, tmp_path / "selector")
    flags = {**variables, "SELECTOR": str(selector)}
    assert run_script("selector_engine", tmp_path, "NaturalQA_test", **flags).returncode == 0
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("scored/*/*.jsonl")}
    weights = load_file(selector / "model.safetensors")
    save_file(
        {name: tensor * 1.5 for name, tensor in weights.items()}, selector / "model.safetensors", {"format": "pt"}
    )
    refused = run_script("selector_engine", tmp_path, "NaturalQA_test", **flags)
    assert refused.returncode == 2 and "take another WORK, or OVERWRITE=1" in refused.stderr
    done = run_script("selector_engine", tmp_path, "NaturalQA_test", **flags, OVERWRITE="1")
    assert done.returncode == 0, done.stderr[-3000:]
    anew = {path.relative_to(tmp_path / "scored") for path, time in made.items() if path.stat().st_mtime_ns != time}
    assert anew == {Path("trained/NaturalQA_test.jsonl")}  # neither the pseudo-passages nor the start's scores


def test_passages_of_another_retriever_are_taken_as_they_are(tiny_run, tmp_path):
    work, variables = tiny_run
    (tmp_path / "retrieved").symlink_to(work / "retrieved")
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "NaturalQA_test.jsonl").write_text("{}\n")
    (tmp_path / "corpus.jsonl").write_text("{}\n")
    flags = {**variables, "PASSAGES": str(tmp_path / "corpus.jsonl"), "SELECTOR": str(tmp_path / "none")}
    done = run_script("figure_gap", tmp_path, **flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not written by retrieval.sh; taken as it is" in done.stderr


def test_selection_goes_without_pseudo_passages(tiny_run, tmp_path, read_jsonl):
    work, variables = tiny_run
    (tmp_path / "retrieved").symlink_to(work / "retrieved")
    flags = {**variables, "SELECTION_FLAGS": "--no_pseudo", "SUPERVISION_FLAGS": "--gain_dtype float32", "GAINS": "1"}
    for script in ("selector_engine", "rag_generation"):
        done = run_script(script, tmp_path, "NaturalQA_test", **flags)
        assert done.returncode == 0, done.stderr[-3000:]
    with_pseudo, without = (
        read_jsonl(tmp_path / "selected" / method / "NaturalQA_test.jsonl")
        for method in ("gainrag", "gainrag_no_pseudo")
    )
    assert len(with_pseudo) == 3
    assert with_pseudo == without


def test_figure_1_needs_no_selector(tiny_run, tmp_path):
    work, variables = tiny_run
    (tmp_path / "retrieved").symlink_to(work / "retrieved")
    without = {name: value for name, value in variables.items() if name != "SELECTOR"}
    done = run_script("figure_gap", tmp_path, **without)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "first3" / "figure_gap.json").read_text("utf-8"))["rows"]
    assert [row["method"] for row in rows if row["gap"]] == ["standard_rag"]


def test_a_plain_selector_of_other_questions_fills_no_row(tiny_run, tmp_path, tiny_reranker):
    work, variables = tiny_run
    (tmp_path / "retrieved").symlink_to(work / "retrieved")
    shutil.copytree(tiny_reranker, tmp_path / "plain_ppl" / "selector")
    done = run_script("table_ablation", tmp_path, **{**variables, "TRAINING": "NoSuch_train"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SKIPPED: plain perplexity" in done.stderr
    cells = json.loads((tmp_path / "first3" / "table_ablation.json").read_text("utf-8"))["cells"]
    assert "plain_ppl" not in {cell["method"] for cell in cells if cell["ours"]}


def test_the_report_of_a_small_run_has_the_scores_of_both_selectors(tiny_run, tmp_path):
    work, variables = tiny_run
    (tmp_path / "retrieved").symlink_to(work / "retrieved")
    for name, sets in {
        "selector_engine": ["NaturalQA_test"],
        "rag_generation": ["NaturalQA_test"],
        "report": [],
    }.items():
        done = run_script(name, tmp_path, *sets, **variables, GAINS="1")
        assert done.returncode == 0, done.stderr[-3000:]
    for which in ("start", "trained"):
        scored = [json.loads(line) for line in (tmp_path / f"scored/{which}/NaturalQA_test.jsonl").open("rb")]
        assert len(scored) == 3 and all(len(record["ctxs"]) in (2, 3) for record in scored)
    page = (tmp_path / "report.html").read_text("utf-8")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "table_none.json").write_text("[]")
    refused = run_script("report", tmp_path, **variables, TABLES=str(tmp_path / "elsewhere"))
    assert refused.returncode == 2 and "elsewhere/table_none.json: not a table" in refused.stderr
    assert "before training" in page and "Not computed: loss and learning rate" in page
    assert (tmp_path / "figures/NaturalQA_test-selector.pdf").exists()


def test_a_training_that_runs_out_of_memory_is_given_again_with_smaller_batches(tmp_path, recorder):
    variables, log = recorder
    (tmp_path / "train.jsonl").touch()
    batch = tmp_path / "selector" / "training.batch.json"
    batch.parent.mkdir()
    # The first run halves its batches and ends as torchrun does; the second ends well, or as the first without halving.
    fail_once = f'() {{ echo "$*" >>"{log}"; [ ! -e "{batch}" ] || return "$AGAIN"; echo "4" >"{batch}"; return 1; }}'
    for again in ("0", "7"):
        batch.unlink(missing_ok=True)
        log.write_text("")
        done = run_script(
            "selector_finetune", tmp_path, **{**variables, "BASH_FUNC_torchrun%%": fail_once, "AGAIN": again}
        )
        assert done.returncode == int(again)
        first, second = log.read_text().splitlines()
        assert first == second and "--resume_from_checkpoint auto" in first
        assert "with smaller batches" in done.stdout + done.stderr
