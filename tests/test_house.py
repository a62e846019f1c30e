"""The house: which way imports flow, what stays in an entry file, how long files and functions are."""

import ast
from pathlib import Path

from conftest import REPOSITORY
from test_entry_points import ENTRY, SOURCES

STAGES = ("retrieval_engine", "llm_supervision", "selector_finetune", "selector_engine", "rag_workflow", "analysis")
FLOORS = {"common": 0, "prompts": 1, "evaluation": 1, "llm_inference": 2, **dict.fromkeys(STAGES, 3), "data": 4}
LONGEST_FILE, LONGEST_FUNCTION = 350, 60  # lines


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def floor_of(module: str) -> int | None:
    """The floor of a module of ours; None for the package itself and for others' modules."""
    parts = module.split(".")
    place = parts[0] if parts[0] == "data" else parts[1] if parts[0] == "gainRAG" and len(parts) > 1 else None
    return FLOORS.get(place)


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, inside functions as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    known = {name_of(source) for source in SOURCES}
    return {module for module in found if module in known}


def is_entry(path: Path) -> bool:
    return ENTRY in path.read_text("utf-8")


def test_imports_flow_one_way():
    upward = [
        f"{name_of(path)} imports {module}"
        for path in SOURCES
        for module in imported(path)
        if (floor_of(module) or 0) > (floor_of(name_of(path)) or 0)
    ]
    assert not upward


def test_nothing_imports_an_entry_file():
    entries = {name_of(path) for path in SOURCES if is_entry(path)}
    assert len(entries) > 15
    taken = [f"{name_of(path)} imports {module}" for path in SOURCES for module in imported(path) & entries]
    assert not taken


def test_parsed_flags_stay_in_the_entry_file():
    holders = {name_of(path) for path in SOURCES if "Namespace" in path.read_text("utf-8") and not is_entry(path)}
    assert holders <= {"gainRAG.common.cli"}


def test_files_and_functions_are_short_enough_to_read():
    texts = {path: path.read_text("utf-8") for path in [*SOURCES, *(REPOSITORY / "benchmarks").glob("*.py")]}
    too_long = [f"{name_of(path)}: {text.count(chr(10))} lines" for path, text in texts.items() if is_long(text)]
    functions = [(path, node) for path, text in texts.items() for node in ast.walk(ast.parse(text))]
    too_long += [
        f"{name_of(path)}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path, node in functions
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert not too_long


def is_long(text: str) -> bool:
    return text.count("\n") > LONGEST_FILE


def test_cases_are_few_enough_to_run_often(request):
    """A table of small cases is one test: conftest.each."""
    assert len(request.session.items) <= 1000
