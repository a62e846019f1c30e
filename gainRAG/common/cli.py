"""What every entry point shares: user errors, argument types, logging and the exit code."""

import argparse
import importlib.util
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

PACKAGE = Path(__file__).resolve().parents[1]
CHANGED = "changed"  # --overwrite: only what was made with other settings


class UserError(Exception):
    """A mistake the user can mend. Its text is one line that says where, what, and what would be right; whatever it
    quotes from files, line breaks and control characters are shown as escapes."""

    def __init__(self, text: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def number_type(kind: type, admits: Callable[[float], bool], wanted: str) -> Callable[[str], Any]:
    """An argument type: a finite number that `admits` takes; `wanted` says in words which those are."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            if math.isfinite(value) and admits(value):
                return value
        except (ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not {wanted}")

    return parse


positive_int = number_type(int, lambda value: value >= 1, "a whole number from 1")
non_negative_int = number_type(int, lambda value: value >= 0, "a whole number from 0")
positive_float = number_type(float, lambda value: value > 0, "a finite number above 0")
non_negative_float = number_type(float, lambda value: value >= 0, "a finite number from 0")
fraction = number_type(float, lambda value: 0 < value <= 1, "a number above 0, at most 1")


class OneLineErrors(argparse.ArgumentParser):
    """A wrong flag is one line on standard error and exit code 2, as every user error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists the flags\n")


def stage_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help shows the entry module's docstring as written, and every default."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    return OneLineErrors(description=doc, formatter_class=Formatter, allow_abbrev=False)


# What a stage imports where it uses it -> how to install it.
OPTIONAL = {
    "FlagEmbedding": "pip install -e '.[train]'",
    "deepspeed": "pip install -e '.[train]'",
    "accelerate": "pip install -e '.[train]'",
    "faiss": "pip install faiss-cpu (or faiss-gpu)",
    "bm25s": "pip install bm25s",
    "vllm": "pip install -e '.[vllm]'",
    "datasets": "pip install -e '.[train]'",
    "ray": "pip install -e '.[ray]'",
    "gguf": "pip install -e '.[demo]'",
    "peft": "pip install -e '.[demo]'",
    "sentence_transformers": "pip install -e '.[demo]'",
    "matplotlib": "pip install -e '.[report]'",
    "jinja2": "pip install -e '.[report]'",
}


def require(package: str) -> None:
    """Says what to install where an optional package is absent, before anything is computed.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(f"the package {package} is not installed: {OPTIONAL[package]}")


def add_overwrite_argument(parser: argparse.ArgumentParser) -> None:
    """--overwrite, as `common.resume.StageOutput` takes it: "" where it is not given, "all" or CHANGED."""
    parser.add_argument(
        "--overwrite",
        nargs="?",
        const="all",
        default="",
        choices=("all", CHANGED),
        help=f"start again from nothing; `--overwrite {CHANGED}`: only where the output was made with other settings",
    )


def keep_apart(output: str | Path, *inputs: str | Path | None) -> None:
    """Refuses an output that would take the place of what it is made from.

    Raises:
        UserError: it is one of the inputs, by whatever path.
    """
    for path in inputs:
        if path and Path(output).resolve() == Path(path).resolve():
            raise UserError(f"{output}: the output would replace its own input; give it another name or folder")


def input_file(path: str | Path) -> Path:
    """`path` as a Path.

    Raises:
        UserError: it is missing, a folder, or not readable.
    """
    path = Path(path)
    try:
        path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be read ({problem.strerror})") from None
    except ValueError:
        raise UserError(f"{str(path)!r:.80}: no file has such a name") from None
    if path.is_dir():
        raise UserError(f"{path}: is a folder, a file is wanted")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: cannot be read (permission denied)")
    return path


def start_logging() -> None:
    """Log lines of a stage's process, or of one that works for it."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    for noisy in ("httpx", "faiss.loader", "DeepSpeed", "sentence_transformers", "torchao", "fontTools", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def say_next(what: str, output: str | Path, command: str) -> None:
    """Logs what is ready, where it lies, and the command that reads it, "" where none does; not where a script runs the
    stages in order."""
    if not os.environ.get("GAINRAG_SCRIPT"):
        logging.getLogger(PACKAGE.name).info("%s: %s%s", what, output, command and f"; next: {command}")


def _under_its_own_name(main: Callable[[], None]) -> Callable[[], None]:
    """`main` of the same module, imported by its name in the package.

    A class of a module that runs as `__main__` is pickled under that name, and other processes do not find it.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    if main.__module__ != "__main__" or not file or not Path(file).resolve().is_relative_to(PACKAGE):
        return main
    file = Path(file).resolve()
    name = ".".join((PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts))
    return getattr(importlib.import_module(name), main.__name__, main)


def run_stage(main: Callable[[], None]) -> None:
    """Runs an entry point and ends the process: 0 when done, 2 for a user error (one line, no traceback),
    130 when interrupted. Any other exception is ours and keeps its traceback."""
    start_logging()
    try:
        _under_its_own_name(main)()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as missing:
        if missing.name not in OPTIONAL:
            raise
        print(f"error: the package {missing.name} is not installed: {OPTIONAL[missing.name]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"interrupted; {str(stop) or 'the same command resumes where it stopped'}", file=sys.stderr)
        sys.exit(130)
