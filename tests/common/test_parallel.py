"""Workers: order, deaths and errors; every stage with two workers, one of them killed, gives one worker's bytes.

Starting workers is slow: without CHAOS_KILLS, which scripts/chaos.sh sets, two of the five stages are run so.
"""

import importlib
import importlib.util
import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, SENTENCES, each, killed_at_record, slow
from doubles import Doubler, Dying

from gainRAG.common import cli, parallel
from gainRAG.common.batching import chunk_size
from gainRAG.common.cli import UserError
from gainRAG.common.parallel import WorkerOptions, map_chunks, worker_options
from gainRAG.llm_inference import background
from gainRAG.llm_supervision import construct_hf
from gainRAG.rag_workflow import rag_generation
from gainRAG.retrieval_engine import exact_search, passage_embed, retrieval
from gainRAG.selector_engine import selector_gainRag

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray not installed")
QUESTIONS = 10


@pytest.fixture(scope="module")
def ray_stops():
    """The Ray of this module's tests finds their workers, and ends with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY / "tests"), prepend=os.pathsep)
        yield
    if HAS_RAY:
        importlib.import_module("ray").shutdown()


@pytest.fixture
def two(ray_stops, monkeypatch) -> WorkerOptions:
    """Two workers, with as many threads as this process has: sums in their last bits depend on it."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    return WorkerOptions(num_workers=2, device="cpu")


# --- the workers ------------------------------------------------------------------------------------------------


def test_one_worker_is_this_process_and_imports_no_ray(run_python):
    script = (
        "import sys; from doubles import Doubler; from gainRAG.common.parallel import *\n"
        "print([double for double, _ in map_chunks(Doubler, range(3))], 'ray' in sys.modules)"
    )
    done = run_python("-c", script, folder="tests")
    assert done.stdout == "[0, 2, 4] False\n", done.stderr


@needs_ray
def test_workers_start_where_ray_is_imported_already(run_python):
    script = (
        "import os\nfor name in ('RAY_AUTH_MODE', 'RAY_AUTH_TOKEN'):\n    os.environ.pop(name, None)\n"
        "import ray; from doubles import Doubler; from gainRAG.common.parallel import *\n"
        "options = WorkerOptions(num_workers=2, device='cpu')\n"
        "print([double for double, _ in map_chunks(Doubler, range(3), options)])"
    )
    done = run_python("-c", script, folder="tests", env={"PYTHONPATH": str(REPOSITORY / "tests")})
    assert done.stdout == "[0, 2, 4]\n", done.stderr


def test_without_a_chunk_no_worker_is_made_and_with_some_it_is_closed():
    class Closing(Doubler):
        def __init__(self):
            made.append("made")

        def close(self):
            made.append("closed")

    made = []
    assert list(map_chunks(Closing, [])) == [] == made
    assert len(list(map_chunks(Closing, [1, 2]))) == 2
    assert made == ["made", "closed"]


def test_a_few_questions_are_enough_chunks_for_all_workers():
    assert chunk_size(128, 8, 500, 1) == 128
    size = chunk_size(128, 8, 500, 8)
    assert 500 / size > 3 * 8
    assert chunk_size(128, 8, 30_000, 8) == 128
    assert chunk_size(128, 8, 20, 8) == 8
    assert chunk_size(2, 8, 20, 8) == 2


@needs_ray
def test_results_come_in_order_from_both_workers_within_a_window(two):
    read, found = [], []
    for result in map_chunks(Doubler, (read.append(number) or number for number in range(40)), two):
        found.append(result)
        assert len(read) < len(found) + parallel.CALLS_A_WORKER * 2
    assert [double for double, _ in found] == list(range(0, 80, 2))
    assert len({pid for _, pid in found} - {os.getpid()}) == 2
    assert list(map_chunks(Doubler, [], two)) == []


@needs_ray
def test_a_killed_worker_is_restarted_and_nothing_is_lost_or_doubled(two, tmp_path):
    dying = partial(Dying, "doubles", "Doubler", tmp_path / "killed")
    found = list(map_chunks(dying, range(40), two))
    assert (tmp_path / "killed").exists()
    assert [double for double, _ in found] == list(range(0, 80, 2))


@needs_ray
def test_records_that_kill_every_worker_end_the_run(two):
    results = map_chunks(Doubler, [1, "deadly", 3], two)
    assert next(results)[0] == 2
    with pytest.raises(UserError, match=f"{parallel.DEATHS} workers died of the same records"):
        list(results)


@needs_ray
def test_mistakes_and_bugs_of_a_worker_reach_the_driver(two, monkeypatch, tmp_path):
    with pytest.raises(UserError) as mistake:
        list(map_chunks(Doubler, [1, "bad"], two))
    assert str(mistake.value) == "bad: wanted a number"
    with pytest.raises(ValueError, match="a bug"):
        list(map_chunks(Doubler, [1, "bug"], two))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "only_here.py").write_text("class Here: pass")
    with pytest.raises(UserError, match=r"every machine needs the same packages.*No module named 'only_here'"):
        list(map_chunks(importlib.import_module("only_here").Here, [1], two))
    with pytest.raises(UserError, match=r"--num_workers 10000: this machine has \d+ CPUs, one a worker"):
        list(map_chunks(Doubler, [1], replace(two, num_workers=10_000)))


@needs_ray
def test_a_busy_cluster_is_reported_and_not_waited_for_for_ever(two, monkeypatch, caplog):
    """Two workers where another job holds the processors: one line says what is awaited, the flag ends it."""
    ray = parallel._connect(None)
    held = [ray.remote(Doubler).options(num_cpus=int(ray.cluster_resources()["CPU"])).remote()]
    ray.get(held[0].__call__.remote(1))
    monkeypatch.setattr(parallel, "REPORT_SECONDS", 0.5)
    caplog.set_level("INFO", logger="gainRAG.common.parallel")
    try:
        with pytest.raises(UserError, match="no worker finished anything for 2 s .*--worker_timeout"):
            list(map_chunks(Doubler, [1], replace(two, worker_timeout=1.5)))
    finally:
        ray.kill(held[0])
    assert "waiting for a worker since 0 s: " in caplog.text
    assert "2 workers wanted" in caplog.text
    here = int(ray.cluster_resources()["CPU"])
    options = replace(two, ray_address="auto", num_workers=here + 3)
    assert parallel.workers_a_machine(options) == here
    assert parallel.workers_a_machine(replace(options, num_workers=1)) == 1


LOSES_A_MACHINE = """
import time
from doubles import Doubler
from ray.cluster_utils import Cluster
from gainRAG.common import parallel
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
parallel.REPORT_SECONDS = 2.0
class Slow(Doubler):
    def __call__(self, chunk):
        time.sleep(0.3)
        return super().__call__(chunk)
print("machines of one CPU:", parallel.workers_a_machine(parallel.WorkerOptions(2, cluster.address, 60.0, "cpu")))
found = []
for result in parallel.map_chunks(Slow, range(40), parallel.WorkerOptions(2, cluster.address, 60.0, "cpu")):
    found.append(result)
    if len(found) == 6:
        cluster.remove_node(second, allow_graceful=False)
print([double for double, _ in found] == list(range(0, 80, 2)), len({pid for _, pid in found}))
again = parallel.map_chunks(Slow, range(4), parallel.WorkerOptions(2, cluster.address, 60.0, "cpu"))
print([double for double, _ in again])
"""


@needs_ray
@slow
def test_the_chunks_of_a_lost_machine_go_to_the_others(run_python):
    done = run_python("-c", LOSES_A_MACHINE, folder="tests", env={"RAY_AUTH_MODE": "disabled", "PYTHONPATH": "."})
    assert "machines of one CPU: 1" in done.stdout.splitlines(), done.stderr
    assert "True 2" in done.stdout.splitlines(), done.stderr
    assert "1 workers are gone with their machine, 1 continue" in done.stderr
    assert "has 1 CPUs, one a worker; 1 start" in done.stderr  # the next work of the same run
    assert "[0, 2, 4, 6]" in done.stdout.splitlines()


# --- flags ------------------------------------------------------------------------------------------------------

STAGES = {
    "gainRAG.retrieval_engine.passage_embed": ["--passages", "gone.tsv", "--output_dir", "out"],
    "gainRAG.retrieval_engine.retrieval": ["--passages", "gone.tsv", "--data_path", "gone", "--output_dir", "out"],
    "gainRAG.llm_supervision.construct_hf": ["--data_path", "gone", "--output_path", "o.jsonl", "--task", "HotpotQA"],
    "gainRAG.selector_engine.selector_gainRag": [
        *("--model_name_or_path", "gone", "--data_path", "gone", "--output_path", "o.jsonl"),
    ],
    "gainRAG.rag_workflow.rag_generation": ["--data_path", "gone", "--task", "HotpotQA"],
}


@each("module", STAGES)
def test_without_ray_every_stage_says_what_to_install(module, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "ray" else find(name, *of))
    monkeypatch.setattr(sys, "argv", [module, *STAGES[module], "--num_workers", "2"])
    with pytest.raises(SystemExit) as end:
        cli.run_stage(importlib.import_module(module).main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: the package ray is not installed: pip install -e '.[ray]'\n"


@each(
    ("flags", "problem"),
    [
        ({"num_workers": 1, "ray_address": "auto"}, "--ray_address: needs --num_workers"),
        ({"device": "cuda:1"}, "--device cuda:1: every worker has one GPU of its own"),
        ({"tensor_parallel_size": 2}, "--tensor_parallel_size: a worker has one GPU"),
        ({"ray_address": "head"}, "--ray_address head: wanted HOST:PORT"),
        ({"ray_address": "127.0.0.1:1"}, "--ray_address 127.0.0.1:1: no Ray cluster answers there"),
    ],
)
def test_flags_that_cannot_be_are_refused(monkeypatch, flags, problem):
    monkeypatch.setattr(parallel, "require", lambda package: None)
    usual = {"num_workers": 2, "ray_address": None, "device": None, "tensor_parallel_size": None}
    usual["worker_timeout"] = 60.0
    worker_options(**usual)
    with pytest.raises(UserError, match=problem):
        worker_options(**{**usual, **flags})


@pytest.mark.parametrize("flags", [["--retriever", "bm25"], ["--index_type", "IVF4,Flat"], ["--index_path", "i"]])
def test_only_exact_search_is_shared_out(monkeypatch, flags):
    monkeypatch.setattr(parallel, "require", lambda package: None)
    arguments = STAGES["gainRAG.retrieval_engine.retrieval"]
    monkeypatch.setattr(sys, "argv", ["retrieval", *arguments, "--num_workers", "2", *flags])
    with pytest.raises(UserError, match="only exact search is shared out"):
        retrieval.main()


# --- the stages -------------------------------------------------------------------------------------------------


def made_questions() -> list[dict]:
    def ctxs(number):
        texts = [f"{SENTENCES[(number + rank) % 8]} {number}" for rank in range(2 + number % 3)]
        return [{"id": f"{number}-{rank}", "title": f"T{rank}", "text": text} for rank, text in enumerate(texts)]

    question = {"answers": ["Paris", "the Nile"]}
    return [{"id": f"q{n}", "question": f"Which, {n}?", **question, "ctxs": ctxs(n)} for n in range(QUESTIONS)]


@pytest.fixture
def embeddings(tmp_path, tiny_encoder, write_jsonl, monkeypatch):
    """Flags of a corpus and its vectors in 20 shards; made by one worker."""
    texts = [f"{SENTENCES[number % 8]} {number}" for number in range(60)]
    corpus = write_jsonl("corpus.jsonl", [{"id": f"p{n}", "title": "", "text": text} for n, text in enumerate(texts)])
    common = ["--model_name_or_path", tiny_encoder, "--passages", corpus, "--device", "cpu"]
    embed = [*common, "--shard_size", 3, "--output_dir"]
    call(monkeypatch, passage_embed, [*embed, tmp_path / "vectors"])
    return {"embed": embed, "search": [*common, "--passages_embeddings", tmp_path / "vectors", "--n_docs", 7]}


def call(monkeypatch, stage, arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["stage", *map(str, arguments)])
    stage.main()


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder; of .metrics.json the metrics: the checkout's commit may change meanwhile."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".metrics.json")}
    for path in folder.glob("*.metrics.json"):
        found[path.name] = {**json.loads(path.read_bytes()), "git_commit": None}
    assert found
    return found


@needs_ray
@pytest.mark.parametrize(
    ("stage", "dying"),
    [
        (retrieval, {"ShardSearcher": exact_search}),
        (rag_generation, {"AnswerWorker": rag_generation}),
        (passage_embed, {"ShardEncoder": passage_embed}),
        (construct_hf, {"CandidateWriter": construct_hf, "GainWorker": construct_hf}),
        (selector_gainRag, {"PseudoPassageWriter": background, "SelectionWorker": selector_gainRag}),
    ][: None if "CHAOS_KILLS" in os.environ else 2],
)
def test_a_stage_ends_with_the_same_bytes_though_workers_are_killed(
    stage, dying, two, embeddings, tiny_llama, tiny_reranker, write_jsonl, monkeypatch, tmp_path
):
    for chunked in (construct_hf, rag_generation, background):
        monkeypatch.setattr(chunked, "CHUNK", 2)
    monkeypatch.setattr(selector_gainRag, "CHUNK", {"cpu": 2})
    data = ["--data_path", write_jsonl("questions.jsonl", made_questions())]
    lm = ["--lm_type", tiny_llama, "--device", "cpu", "--max_batch_tokens", 512]
    task = ["--task", "HotpotQA", "--max_new_tokens", 6]
    flags = {
        passage_embed: embeddings["embed"][:-1],
        retrieval: [*embeddings["search"], *data],
        construct_hf: [*data, *lm, *task, "--background_tokens", 8],
        selector_gainRag: [*data, *lm, "--model_name_or_path", tiny_reranker, "--background_tokens", 8],
        rag_generation: [*data, *lm, *task],
    }[stage]

    def run(folder, *more):
        to_folder = stage in (passage_embed, retrieval)
        output = ["--output_dir", folder] if to_folder else ["--output_path", folder / "out.jsonl"]
        call(monkeypatch, stage, [*flags, *output, *more])
        return content(folder)

    whole = run(tmp_path / "one")
    for name, module in dying.items():
        monkeypatch.setattr(module, name, partial(Dying, module.__name__, name, tmp_path / name))
    found = run(tmp_path / "two", "--num_workers", two.num_workers)
    assert all((tmp_path / name).exists() for name in dying)
    assert found == whole


@needs_ray
@slow
def test_a_killed_driver_leaves_what_one_worker_goes_on_with(
    ray_stops, run_python, tiny_llama, write_jsonl, monkeypatch, tmp_path
):
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    data = write_jsonl("questions.jsonl", made_questions())
    flags = ["--data_path", data, "--task", "HotpotQA", "--lm_type", tiny_llama, "--device", "cpu"]
    flags += ["--max_new_tokens", 6, "--output_path"]
    script = killed_at_record("gainRAG.rag_workflow.rag_generation", 6, "stage.CHUNK = 2")
    dead = run_python("-c", script, *flags, tmp_path / "out.jsonl", "--num_workers", 2, env=threads)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert len((tmp_path / "out.jsonl.unfinished").read_text().splitlines()) == 5
    monkeypatch.setattr(rag_generation, "CHUNK", 2)
    for name in ("out.jsonl", "whole.jsonl"):
        call(monkeypatch, rag_generation, [*flags, tmp_path / name])
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@needs_ray
@slow
def test_two_workers_of_a_script_started_in_its_own_folder(run_python, embeddings, write_jsonl, tmp_path, monkeypatch):
    """The workers must find its modules by their names in the package."""
    data = write_jsonl("questions.jsonl", made_questions())
    flags = [*embeddings["search"], "--data_path", data, "--output_dir"]
    call(monkeypatch, retrieval, [*flags, tmp_path / "one"])
    arguments = ["retrieval.py", *flags, tmp_path / "two", "--num_workers", 2]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = run_python(*arguments, folder="gainRAG/retrieval_engine", env=threads)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "two") == content(tmp_path / "one")


@needs_ray
@slow
def test_a_mistake_found_by_a_worker_ends_with_one_line(run_python, embeddings, tiny_encoder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((tiny_encoder / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes(b"damaged, which is found where the weights are loaded")
    arguments = embeddings["embed"]
    arguments[1] = broken
    done = run_python("-m", "gainRAG.retrieval_engine.passage_embed", *arguments, tmp_path / "out", "--num_workers", 2)
    assert done.returncode == 2, done.stderr
    assert f"error: {broken}: cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "shards.jsonl").exists()
