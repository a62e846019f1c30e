"""Every entry point, found by its last lines: --help in both forms, and a wrong path as a user error."""

import json
from functools import partial

import pytest
from conftest import REPOSITORY

ENTRY = 'if __name__ == "__main__":\n    run_stage('


def entry_files(folder: str) -> list[str]:
    found = [path for path in (REPOSITORY / folder).rglob("*.py") if ENTRY in path.read_text("utf-8")]
    return sorted(str(path.relative_to(REPOSITORY / folder)) for path in found)


MODULES = [name.removesuffix(".py").removesuffix("/__main__").replace("/", ".") for name in entry_files("gainRAG")]
SCRIPTS = entry_files("data")

RUN_ALL = """
import json, os, runpy, sys, tempfile
import torch  # imported once, then every run is a fork
for name, arguments in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.argv = [name, *arguments]
            code = 1
            try:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
                code = 0
            except SystemExit as end:
                code = end.code or 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        print(json.dumps([name, code, output.read()]))
"""


def run_all(run_python, cases) -> list:
    done = run_python("-c", RUN_ALL, json.dumps(cases), timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_promised_stages_are_among_them():
    assert {
        "retrieval_engine.retrieval",
        "retrieval_engine.passage_embed",
        "llm_supervision.construct_hf",
        "llm_supervision.filtering",
        "selector_finetune",
        "selector_engine.selector_gainRag",
        "rag_workflow.rag_generation",
        "rag_workflow.run_baselines",
    } <= set(MODULES)
    assert {"data_filter.py", "data2selector.py", "prepare_questions.py", "prepare_corpus.py"} <= set(SCRIPTS)


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("gainRAG", MODULES),
        ("data", [name.removesuffix(".py") for name in SCRIPTS]),
        ("gainRAG/retrieval_engine", ["retrieval", "passage_embed"]),
    ],
)
def test_the_short_form_shows_help_from_its_folder(run_python, folder, names):
    """As `python -m NAME` and `python NAME.py` do there: the folder is the first where modules are looked for."""
    results = run_all(partial(run_python, folder=folder), [(name, ["--help"]) for name in names])
    assert [name for name, _, _ in results] == names
    for name, code, output in results:
        assert code == 0 and output.startswith("usage:"), (name, output)


def test_a_short_form_is_run_by_python_itself(run_python):
    for arguments, folder in ((["-m", "rag_workflow.rag_generation"], "gainRAG"), (["data2selector.py"], "data")):
        done = run_python(*arguments, "--help", folder=folder)
        assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr


def test_the_long_form_shows_help(run_python):
    results = run_all(run_python, [(f"gainRAG.{module}", ["--help"]) for module in MODULES])
    assert [name for name, _, _ in results] == [f"gainRAG.{module}" for module in MODULES]
    for name, code, output in results:
        assert code == 0, output
        assert "usage:" in output, name


def test_the_long_form_is_run_by_python_from_anywhere(run_python, tmp_path):
    script = f"import os, sys; os.chdir({str(tmp_path)!r}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = run_python("-c", script, "-m", "gainRAG.llm_supervision.construct_hf", "--help")
    assert done.returncode == 0, done.stderr
    assert "--alpha" in done.stdout


def test_a_wrong_path_gives_code_2_and_one_line(run_python, tiny_llama, tiny_reranker, tiny_encoder, tmp_path):
    lm = ["--lm_type", str(tiny_llama), "--task", "HotpotQA"]
    data = ["--data_path", str(tmp_path / "gone.jsonl")]
    output = ["--output_path", str(tmp_path / "out" / "out.jsonl")]
    folder = ["--output_dir", str(tmp_path / "out")]
    corpus = ["--passages", str(tmp_path / "gone.tsv"), "--model_name_or_path", str(tiny_encoder)]
    cases = {
        "gainRAG.retrieval_engine.passage_embed": [*corpus, *folder],
        "gainRAG.retrieval_engine.retrieval": [*corpus, *data, *folder, "--passages_embeddings", str(tmp_path)],
        "gainRAG.llm_supervision.construct_hf": [*data, *output, *lm],
        "gainRAG.llm_supervision.filtering": [*data, *output, *lm],
        "gainRAG.selector_engine.selector_gainRag": [*data, *output, "--model_name_or_path", str(tiny_reranker)],
        "gainRAG.rag_workflow.rag_generation": [*data, *output, *lm],
        "gainRAG.rag_workflow.run_baselines": [*data, *folder, *lm],
        "data_filter": [*data, *output],
        "data2selector": [*data, *output],
        "prepare_sample": [*data, *output],
    }
    # As `python data/NAME.py` does, its folder is the first where modules are looked for.
    program = f"import sys; sys.path.insert(0, {str(REPOSITORY / 'data')!r})\n{RUN_ALL}"
    done = run_python("-c", program, json.dumps(list(cases.items())))
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(cases), done.stderr
    for name, code, shown in results:
        assert code == 2, (name, shown)
        assert "Traceback" not in shown, shown
        assert shown.splitlines()[-1].startswith("error: "), (name, shown)
        assert "gone." in shown.splitlines()[-1], (name, shown)
    assert not list(tmp_path.rglob("out*.jsonl"))


def test_scripts_that_only_read_records_load_no_torch(run_python):
    for script in ("data2selector", "data_filter", "prepare_sample"):
        watch = "import runpy, sys; sys.argv = ['x', '--help']; sys.path.insert(0, 'data')\n"
        watch += f"try: runpy.run_module({script!r}, run_name='__main__')\nfinally: print('torch' in sys.modules)"
        assert run_python("-c", watch).stdout.splitlines()[-1] == "False", script


def test_help_needs_no_heavy_packages(run_python):
    """What a stage does not use it does not import: these would make --help wait for seconds."""
    heavy = ["vllm", "ray", "deepspeed", "FlagEmbedding", "faiss", "sentence_transformers", "matplotlib"]
    names = [f"gainRAG.{module}" for module in MODULES if module != "selector_finetune"]
    script = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    )
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
