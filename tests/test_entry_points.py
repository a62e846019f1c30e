"""Every entry point, found by its last lines: --help in both forms, every flag that a text names among them, and a
wrong path as a user error."""

import ast
import json
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

SOURCES = sorted([*(REPOSITORY / "gainRAG").rglob("*.py"), *(REPOSITORY / "data").glob("*.py")])
ENTRY = 'if __name__ == "__main__":\n    run_stage('


def entry_files(folder: str) -> list[str]:
    found = [path for path in (REPOSITORY / folder).rglob("*.py") if ENTRY in path.read_text("utf-8")]
    return sorted(str(path.relative_to(REPOSITORY / folder)) for path in found)


MODULES = [name.removesuffix(".py").removesuffix("/__main__").replace("/", ".") for name in entry_files("gainRAG")]
SCRIPTS = entry_files("data")

RUN_ALL = """
import importlib, json, os, runpy, sys, tempfile
importlib.import_module(sys.argv[2])  # once, then every run is a fork
for folder, name, arguments in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.chdir(folder)
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
        print(json.dumps([folder, name, code, output.read()]))
"""


def run_all(cases: list, common: str = "torch") -> list:
    """Folder, name, exit code and output of each case (folder, name, arguments): as with `python -m NAME` and `python
    NAME.py`, the folder is the first where modules are looked for. `common` is a module that many of them import."""
    command = [sys.executable, "-c", RUN_ALL, json.dumps(cases), common]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(cases), done.stderr
    return results


@pytest.fixture(scope="module")
def help_of() -> dict[str, dict[str, str]]:
    """For each folder where commands are given, what --help prints there, by name."""
    scripts = [name.removesuffix(".py") for name in SCRIPTS]
    names = {".": [f"gainRAG.{module}" for module in MODULES], "gainRAG": MODULES, "data": scripts}
    names["gainRAG/retrieval_engine"] = ["retrieval", "passage_embed"]
    found: dict = {folder: {} for folder in names}
    cases = [(folder, name, ["--help"]) for folder, of_folder in names.items() for name in of_folder]
    for folder, name, code, output in run_all(cases, "FlagEmbedding.finetune.reranker.encoder_only.base"):
        assert code == 0, (folder, name, output)
        found[folder][name] = output
    return found


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


def test_both_forms_show_help(help_of):
    for folder, texts in help_of.items():
        for name, text in texts.items():
            assert text.startswith("usage:"), (folder, name, text)
            commands = re.findall(r"^ +(?:python|cd data).*", text, re.M)
            assert not [command for command in commands if re.search(r"\S {2,}\S", command)], (folder, name)


def test_a_short_form_is_run_by_python_itself(run_python):
    for arguments, folder in (
        (["-m", "rag_workflow.rag_generation"], "gainRAG"),
        (["retrieval.py"], "gainRAG/retrieval_engine"),
        (["data2selector.py"], "data"),
    ):
        done = run_python(*arguments, "--help", folder=folder)
        assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr


def test_the_long_form_is_run_by_python_from_anywhere(run_python, tmp_path):
    script = f"import os, sys; os.chdir({str(tmp_path)!r}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = run_python("-c", script, "-m", "gainRAG.llm_supervision.construct_hf", "--help")
    assert done.returncode == 0, done.stderr
    assert "--alpha" in done.stdout


def test_a_wrong_path_gives_code_2_and_one_line(tiny_llama, tiny_reranker, tiny_encoder, tmp_path):
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
    found = run_all([("." if "." in name else "data", name, arguments) for name, arguments in cases.items()])
    for _, name, code, shown in found:
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


# --- flags in texts ---------------------------------------------------------------------------------------------

FLAG = re.compile(r"(?<![\w-])--([A-Za-z][\w-]*)")
TEXTS = [*SOURCES, *REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("data/*.md")]
TEXTS += sorted(REPOSITORY.glob("scripts/*"))
# Flags of other programs that our texts and scripts call (pip, git, ray, torchrun, curl, ...), and of scripts/*.sh.
OTHERS = """
abbrev always check dirty exclude version no-deps only-binary retries dest quiet disable-pip-version-check
editable generate head port address nnodes nproc_per_node rdzv_backend rdzv_endpoint standalone dist
continue-at fail location silent show-error output connect-timeout retry index-url extra-index-url plan
data_dir yes help query-gpu
"""


@pytest.fixture(scope="module")
def flags_of(help_of) -> dict[str, set[str]]:
    """The flags of every entry file, by its short name."""
    texts = {**help_of["."], **help_of["data"]}
    return {name.split(".")[-1]: set(FLAG.findall(text)) for name, text in texts.items()}


def declared_flags() -> set[str]:
    """What any file of ours gives to add_argument, benchmarks included."""
    found = set()
    for path in [*SOURCES, *REPOSITORY.glob("benchmarks/*.py"), *REPOSITORY.glob("tests/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = ast.unparse(node.func)
                if called.endswith("add_argument") or called in ("add", "flag"):
                    found.update(FLAG.findall(str(node.args[0].value)))
    return found


def test_every_flag_that_a_text_names_exists(flags_of):
    known = set().union(*flags_of.values()) | declared_flags() | set(OTHERS.split())
    unknown = [
        f"{path.relative_to(REPOSITORY)}: --{flag}"
        for path in TEXTS
        if path.is_file()
        for flag in FLAG.findall(path.read_text("utf-8"))
        if flag not in known
    ]
    assert not unknown


def test_a_flag_named_with_its_stage_is_that_stages(flags_of):
    pair = re.compile(rf"\b({'|'.join(sorted(flags_of, key=len, reverse=True))})(?:\.py)?`? (?:\\\n\s*)?--(\w+)")
    wrong = [
        f"{path.relative_to(REPOSITORY)}: {stage} --{flag}"
        for path in TEXTS
        if path.is_file()
        for stage, flag in pair.findall(path.read_text("utf-8"))
        if flag not in flags_of[stage]
    ]
    assert not wrong
