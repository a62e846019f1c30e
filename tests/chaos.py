"""Every stage, killed at random moments and started again, ends with the bytes of a run that was left alone.

Too slow for every run of the tests, which keep a kill at a record: `bash scripts/chaos.sh` runs this file by name.
CHAOS_KILLS sets how often each stage dies of each signal (10).
"""

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPOSITORY, SENTENCES

KILLS = int(os.environ.get("CHAOS_KILLS", "10"))
POLL = 0.005  # seconds
NANNY = """
import contextlib, importlib, json, os, sys, time
import torch
from gainRAG.common import resume
sys.path.insert(0, "data")
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what an import prints is no answer
line = resume.line_of
def slow(record):  # tiny models take no time: without this, hardly a death would fall into the work
    time.sleep(0.03)
    return line(record)
def live(module, arguments, chunks, log):
    code = 1
    try:
        log = open(log, "w")
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        resume.line_of = slow
        for name, size in chunks.items():
            importlib.import_module(name).CHUNK = size
        sys.argv = [module, *arguments]
        importlib.import_module(module).main()
        print("modules", *sys.modules, file=log, flush=True)
        code = 0
    except BaseException as problem:
        print(repr(problem), file=log, flush=True)
    finally:
        os._exit(code)
for request in map(json.loads, sys.stdin):
    child = os.fork() or live(*request)
    print(child, file=answers, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for name in open(request[-1]).read().rpartition("modules ")[2].split() if code == 0 else []:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    print(code, file=answers, flush=True)
"""


@dataclass(frozen=True)
class Stage:
    """A stage's command; `{name}` in its flags is a folder: of a model, of the data, the output, or another's output.

    Attributes:
        chunks: modules whose CHUNK is to be small, and what it is to be.
        resumes: a second run resumes from records or checkpoints (else it begins again, and nothing partial is seen).
    """

    module: str
    flags: str
    chunks: dict[str, int | dict[str, int]]
    resumes: bool = True


LLM = "--task HotpotQA --lm_type {llm} --device cpu --dtype float32"
STAGES = {
    "passage_embed": Stage(
        "gainRAG.retrieval_engine.passage_embed",
        "--model_name_or_path {encoder} --passages {data}/corpus.jsonl --passages_store {out} --output_dir {out} "
        "--shard_size 2 --device cpu --dtype float32",
        {},
    ),
    "retrieval": Stage(
        "gainRAG.retrieval_engine.retrieval",
        "--model_name_or_path {encoder} --passages {data}/corpus.jsonl --passages_store {passage_embed} "
        "--passages_embeddings {passage_embed} --data_path {data}/train.jsonl {data}/test.jsonl --output_dir {out} "
        "--n_docs 4 --device cpu --dtype float32",
        {},
    ),
    "construct_hf": Stage(
        "gainRAG.llm_supervision.construct_hf",
        "--data_path {retrieval}/train.jsonl --output_path {out}/gains.jsonl --background_tokens 8 --max_new_tokens 6 "
        + LLM,
        {"gainRAG.llm_supervision.construct_hf": 2},
    ),
    "filtering": Stage(
        "gainRAG.llm_supervision.filtering",
        "--data_path {construct_hf}/gains.jsonl --output_path {out}/kept.jsonl --max_new_tokens 6 " + LLM,
        {"gainRAG.llm_supervision.filtering": 2},
    ),
    "data2selector": Stage(
        "data2selector", "--data_path {construct_hf}/gains.jsonl --output_path {out}/train.jsonl", {}, resumes=False
    ),
    "training": Stage(
        "gainRAG.selector_finetune.runner",
        "--model_name_or_path {reranker} --train_data {data2selector}/train.jsonl --output_dir {out} "
        "--overwrite_output_dir --resume_from_checkpoint True --train_group_size 4 --knowledge_distillation True "
        "--per_device_train_batch_size 2 --learning_rate 1e-3 --num_train_epochs 3 --logging_steps 1 --save_steps 3 "
        "--use_cpu True --disable_tqdm True",
        {},
    ),
    "selection": Stage(
        "gainRAG.selector_engine.selector_gainRag",
        "--model_name_or_path {reranker} --data_path {retrieval}/test.jsonl --output_path {out}/selected.jsonl "
        "--K_docs 2 --background_tokens 8 --lm_type {llm} --device cpu --dtype float32",
        {"gainRAG.selector_engine.selector_gainRag": {"cpu": 2}, "gainRAG.llm_inference.background": 2},
    ),
    "generation": Stage(
        "gainRAG.rag_workflow.rag_generation",
        "--data_path {selection}/selected.jsonl --output_path {out}/answers.jsonl --max_new_tokens 6 " + LLM,
        {"gainRAG.rag_workflow.rag_generation": 2},
    ),
}


def progress(folder: Path) -> int:
    """Records on disk, whatever their file is called by now, or checkpoints begun."""
    count = len(list(folder.glob("checkpoint-*")))
    for path in folder.glob("*.jsonl*"):
        if path.suffix in (".jsonl", ".unfinished"):
            with contextlib.suppress(FileNotFoundError):  # renamed just now
                count += path.read_bytes().count(b"\n")
    return count


def result(folder: Path) -> dict:
    """All that a stage left; of training its losses and weights, since its other files tell the time."""
    if (folder / "model.safetensors").exists():
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses = [entry["loss"] for entry in history if "loss" in entry]
        return {"losses": losses, "weights": (folder / "model.safetensors").read_bytes()}
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in files:
        if name.endswith(".metrics.json"):
            files[name] = {**json.loads(files[name]), "git_commit": "may change meanwhile"}
    return files


@dataclass(frozen=True)
class Undisturbed:
    """A run left alone: its folder, the most `progress` seen, and its seconds."""

    folder: Path
    peak: int
    seconds: float


class Runs:
    """Starts stages: forks of one process that has only imported, and never computed (a fork would hang on its threads'
    locks), so that each begins at once. `runs[name]` is the folder of a model, the data, or a stage's undisturbed run.
    """

    def __init__(self, nanny: subprocess.Popen, root: Path, folders: dict[str, Path]) -> None:
        self.nanny, self.root, self.folders = nanny, root, folders
        self.log = root / "log"
        self.known: dict[str, Undisturbed] = {}

    def __getitem__(self, name: str) -> Path:
        return self.folders.get(name) or self.undisturbed(name).folder

    def undisturbed(self, name: str) -> Undisturbed:
        """The first of two such runs shows what to import, the second how long it takes then."""
        if name not in self.known:
            first, second = (self.root / name / number for number in ("first", "second"))
            assert self.life(name, first) == 0, self.log.read_text()
            started, seen = time.monotonic(), [0]
            assert self.life(name, second, lambda: seen.append(progress(second))) == 0, self.log.read_text()
            assert result(first) == result(second)
            self.known[name] = Undisturbed(second, max(seen), time.monotonic() - started)
        return self.known[name]

    def life(self, name: str, out: Path, dies_now: Callable[[], bool | None] = bool, of: int = signal.SIGKILL) -> int:
        """Runs a stage, asks again and again whether it `dies_now`, and gives its exit code."""
        stage, folders = STAGES[name], ChainMap({"out": out}, self)
        arguments = [part.format_map(folders) for part in stage.flags.split()]
        out.mkdir(parents=True, exist_ok=True)
        self.nanny.stdin.write(json.dumps([stage.module, arguments, stage.chunks, str(self.log)]) + "\n")
        self.nanny.stdin.flush()
        child = int(self.nanny.stdout.readline())
        while not select.select([self.nanny.stdout], [], [], POLL)[0]:
            if dies_now():
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(child, of)
                break
        return int(self.nanny.stdout.readline())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_encoder, tiny_llama, tiny_reranker):
    root = tmp_path_factory.mktemp("chaos")
    passages = [{"id": str(n), "title": f"T{n}", "text": text} for n, text in enumerate(SENTENCES)]
    questions = [{"id": n, "question": f"{SENTENCES[n % 8][:20]}, {n}?", "answers": ["e", "Paris"]} for n in range(14)]
    for name, rows in (("corpus", passages), ("train", questions[:8]), ("test", questions[8:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    folders = {"data": root, "encoder": tiny_encoder, "llm": tiny_llama, "reranker": tiny_reranker}
    with subprocess.Popen(
        [sys.executable, "-c", NANNY],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as nanny:
        yield Runs(nanny, root, folders)


def moment(whole: Undisturbed, out: Path, rng: random.Random, by_records: bool) -> Callable[[], bool]:
    """When to die: a little after so many records or checkpoints are there, or at any time since the start."""
    end = time.monotonic() + rng.uniform(0, whole.seconds)
    present = progress(out)
    wanted = rng.randint(present + 1, whole.peak) if by_records and present < whole.peak else None

    def dies_now() -> bool:
        if wanted is None:
            return time.monotonic() >= end
        if progress(out) < wanted:
            return False
        time.sleep(rng.uniform(0, 0.03))
        return True

    return dies_now


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_killed_again_and_again_ends_as_one_left_alone(runs, name, sent):
    whole, out, resumes = runs.undisturbed(name), runs.root / name / sent.name, STAGES[name].resumes
    rng = random.Random(f"{name} {sent.name}")
    deaths = resumed = 0
    while deaths < KILLS:
        resumed += progress(out) > 0
        code = runs.life(name, out, moment(whole, out, rng, resumes and deaths % 2 == 0), sent)
        if code == 0:  # it got through: begin again, so that each death is one
            assert result(out) == result(whole.folder)
            shutil.rmtree(out)
        else:
            assert code == -sent, runs.log.read_text()
            deaths += 1
    resumed += progress(out) > 0
    assert runs.life(name, out) == 0, runs.log.read_text()
    assert result(out) == result(whole.folder)
    assert resumed or not resumes  # some of them died with work done
