"""Trains the selector; the command and what it does: gainRAG/selector_finetune/runner.py, or --help."""

from gainRAG.cli import run_stage
from gainRAG.selector_finetune.runner import main

if __name__ == "__main__":
    run_stage(main)
