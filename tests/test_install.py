"""scripts/install.sh with a Python that only notes what pip is asked for."""

import os
import shutil
import subprocess

import pytest
from conftest import REPOSITORY

PYTHON = '#!/bin/bash\nprintf "%s " "$@" >>"$NOTED"\necho >>"$NOTED"\n'


@pytest.fixture
def install(tmp_path):
    """Runs install.sh in a copy of the repository's root; what pip was called with."""
    for name in ("scripts/install.sh", "requirements-cpu.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    noted = tmp_path / "noted"

    def run(**environment) -> list[str]:
        noted.write_text("")
        given = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX_URL"}
        script = ["bash", str(tmp_path / "scripts/install.sh"), "demo"]
        subprocess.run(script, env={**given, "NOTED": str(noted), **environment}, check=True, capture_output=True)
        return noted.read_text().splitlines()

    return run


def test_torch_index_url_names_the_index_of_torch_alone(install):
    calls = install(TORCH_INDEX_URL="file:///index")
    assert "--no-deps --index-url file:///index torch==" in calls[0]
    assert not any("--index-url" in call for call in calls[1:])
    assert "requirements-cpu.txt" in calls[1]


def test_without_it_nothing_names_an_index_and_nothing_is_installed_twice(install):
    calls = install()
    assert len(calls) == 3
    assert not any("--index-url" in call for call in calls)
    assert install() == []
