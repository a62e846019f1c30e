"""The README and docs: every command, path and link in them exists, the tree is that of the files, examples load."""

import json
import re

import pytest
import yaml
from conftest import REPOSITORY, each

from gainRAG.prompts import load_prompts
from gainRAG.selector_engine.selector import Selector

README = REPOSITORY / "README.md"
PAGES = [README, *sorted(REPOSITORY.glob("[A-Z]*.md")), *sorted(REPOSITORY.glob("docs/*.md"))]
PAGES += sorted(REPOSITORY.glob("data/**/*.md"))
PAGES = list(dict.fromkeys(PAGES))
TEXTS = {str(page.relative_to(REPOSITORY)): page.read_text("utf-8") for page in PAGES}

MODULE = re.compile(r"(?:python3? |torchrun [^`\n]*)-m ([\w.]+)")
OTHERS = ("pip", "pytest", "ruff", "mypy", "build", "venv")
SCRIPT = re.compile(r"\b(?:bash|source|sh) ((?:\.\./)?[\w./-]+\.sh)\b")
PYTHON = re.compile(r"\bpython3? ((?:\.\./)?[\w/-]+\.py)\b")
# A path of ours begins with one of the folders; a name with * or < stands for several.
PATH = re.compile(
    r"(?<![\w./-])((?:gainRAG|data|scripts|docs|tests|benchmarks|deepspeed|images)/[\w./-]*[\w/])(?![\w*<{$])"
)
MADE = ("data/downloads", "data/questions")  # what scripts make
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
MOVES = re.compile(r"\bcd ([\w/]+) && (.*)")


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(TEXTS[page]) if kind == language]


def module_exists(name: str) -> bool:
    """Whether `python -m NAME` finds it, in the long form or, from inside gainRAG/, in the short one."""
    base = REPOSITORY.joinpath(*(name if name.startswith("gainRAG.") else f"gainRAG.{name}").split("."))
    return base.with_suffix(".py").is_file() or (base / "__main__.py").is_file()


def script_exists(name: str, text: str) -> bool:
    """Whether a script that a text runs is there, from the root or from a folder that the text changes into."""
    folders = [REPOSITORY, *(REPOSITORY / folder for folder, _ in MOVES.findall(text)), REPOSITORY / "data"]
    return any((folder / name).is_file() for folder in folders)


def anchors(text: str) -> set[str]:
    """The #names of a page's headings, as they are shown on the web."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.M)
    return {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def unfound(pattern: re.Pattern, exists) -> list[str]:
    found = {(page, name) for page, text in TEXTS.items() for name in pattern.findall(text) if not exists(name, text)}
    return [f"{page}: {name}" for page, name in sorted(found)]


def test_pages_are_found():
    assert {"README.md", "CONTRIBUTING.md", "docs/adding.md", "data/README.md"} <= set(TEXTS)


def test_the_readme_fits_two_pages():
    assert TEXTS["README.md"].count("\n") <= 150


def test_a_block_that_is_to_stop_at_an_error_stops_at_each():
    """`set -e` lets a && chain fail: the next line would run on what is left of an earlier run."""
    stopping = [text for page in TEXTS for text in blocks(page, "bash") if "set -e" in text]
    assert stopping and not [text for text in stopping if "&&" in text]


def test_every_module_that_a_command_runs_exists():
    assert not unfound(MODULE, lambda name, _: name.split(".")[0] in OTHERS or module_exists(name))


@each("pattern", [SCRIPT, PYTHON], ids=["bash", "python"])
def test_every_script_that_a_command_runs_exists(pattern):
    assert not unfound(pattern, script_exists)


def test_every_path_exists():
    assert not unfound(PATH, lambda name, _: name.startswith(MADE) or (REPOSITORY / name).exists())


def test_every_link_leads_to_a_file_and_its_heading():
    missing = []
    for page in PAGES:
        for target, anchor in LINK.findall(page.read_text("utf-8")):
            file = (page.parent / target).resolve() if target else page
            if not file.exists() or anchor and anchor not in anchors(file.read_text("utf-8")):
                missing.append(f"{page.relative_to(REPOSITORY)}: {target}{anchor}")
    assert not missing


@each(
    ("text", "pattern", "exists"),
    [
        ("python -m gainRAG.retrieval_engine.retrieve", MODULE, lambda name, _: module_exists(name)),
        ("cd gainRAG && python -m llm_supervision.construct", MODULE, lambda name, _: module_exists(name)),
        ("bash scripts/demo.sh", SCRIPT, script_exists),
        ("cd data && python data3selector.py", PYTHON, script_exists),
        ("see `tests/test_nothing.py`", PATH, lambda name, _: (REPOSITORY / name).exists()),
    ],
)
def test_what_does_not_exist_is_found(text, pattern, exists):
    (name,) = pattern.findall(text)
    assert not exists(name, text)


# --- the tree ---------------------------------------------------------------------------------------------------


def tree() -> dict[str, str]:
    """Top folder, or folder in gainRAG/ -> what the README's tree lists in it."""
    (text,) = [text for text in blocks("README.md", "") if text.startswith("gainRAG/")]
    entries: dict[str, str] = {}
    for line in text.splitlines():
        if opened := re.match(r"( {2})?([\w]+)/\s", line):
            name = f"gainRAG/{opened[2]}" if opened[1] else opened[2]
            entries[name] = line[opened.end() :]
        else:
            entries[name] += line
    return entries


def test_the_tree_lists_the_files_that_are_there_and_no_others():
    listed = {
        f"{folder}/{name}"
        for folder, line in tree().items()
        if folder.startswith(("gainRAG", "data"))
        for name in re.findall(r"\w+\.(?:py|yaml)\b", line)
    }
    files = [*REPOSITORY.glob("gainRAG/**/*.py"), *REPOSITORY.glob("gainRAG/*.yaml"), *REPOSITORY.glob("data/*.py")]
    there = {str(path.relative_to(REPOSITORY)) for path in files if path.name != "__init__.py"}
    assert listed == there


def test_the_tree_marks_what_users_run():
    marked = {f"{folder}/{name}" for folder, line in tree().items() for name in re.findall(r"(\w+\.py)\*", line)} - {
        "gainRAG/selector_finetune/__main__.py"
    }  # three lines that import runner.py
    files = [*REPOSITORY.glob("gainRAG/**/*.py"), *REPOSITORY.glob("data/*.py")]
    entries = {str(path.relative_to(REPOSITORY)) for path in files if "    run_stage(" in path.read_text("utf-8")}
    assert marked == entries - {"gainRAG/selector_finetune/__main__.py"}


# --- examples ---------------------------------------------------------------------------------------------------


def test_the_readmes_selector_runs(tiny_reranker):
    (example,) = blocks("README.md", "python")
    names = {}
    exec(re.sub(r'Selector\("[^"]+"\)', f"Selector({str(tiny_reranker)!r})", example), names)
    assert isinstance(names["selector"], Selector)
    assert {"title", "text", "selector_score"} == set(names["best"])


def test_the_task_of_the_docs_loads(tmp_path):
    (example,) = blocks("docs/adding.md", "yaml")
    path = tmp_path / "prompts.yaml"
    path.write_text(example)
    (name,) = yaml.safe_load(example)["tasks"]
    assert load_prompts(path).task(name).instruction


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a JSONL file into the folder that the docs' examples are run in."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, *records: dict) -> None:
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    return write


def test_the_selection_method_of_the_docs_runs(written, tmp_path):
    (record,) = blocks("docs/adding.md", "json")
    written("retrieved.jsonl", json.loads(record))
    exec(blocks("docs/adding.md", "python")[1], {})
    assert '"A novel by Jane Austen."' in (tmp_path / "shortest.jsonl").read_text()


def test_the_training_questions_of_the_docs_come_out(written, tmp_path):
    ask, keep = blocks("docs/adding.md", "python")[2:]
    written("passages.jsonl", *({"id": name, "title": "Emma", "text": "By Jane Austen."} for name in "abc"))
    exec(ask, {})
    asked = [json.loads(line) for line in (tmp_path / "ask.jsonl").read_text().splitlines()]
    texts = ["Question: Who wrote Emma?\nAnswer: Jane Austen", "Question: When?\nAnswer: 1815", "I cannot."]
    written("asked.jsonl", *({**record, "prediction": text} for record, text in zip(asked, texts, strict=True)))
    exec(keep, {})
    kept = json.loads((tmp_path / "questions.jsonl").read_text())
    assert kept == {"id": "a", "question": "Who wrote Emma?", "answers": ["Jane Austen"]}
