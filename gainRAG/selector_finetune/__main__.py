"""Trains the selector; the command and what it does: gainRAG/selector_finetune/runner.py, or --help."""

import importlib

from gainRAG.common.cli import run_stage

if __name__ == "__main__":
    run_stage(lambda: importlib.import_module("gainRAG.selector_finetune.runner").main())
