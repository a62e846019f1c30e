"""Workers that stand in for a stage's, light enough for a new process to import at once."""

import importlib
import os
import signal
from pathlib import Path

from gainRAG.common.cli import UserError


class Doubler:
    """Doubles numbers. Some words are orders: `bad` is a user error, `bug` is ours, `deadly` kills the process."""

    def __call__(self, chunk):
        if chunk == "bad":
            raise UserError("bad: wanted a number")
        if chunk == "bug":
            raise ValueError("a bug")
        if chunk == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * chunk, os.getpid()


class Dying:
    """A worker of another module, in a process that is killed once, when its second chunk is done but not handed over.

    Args:
        marker: a file that tells that it has happened.
    """

    def __init__(self, module: str, name: str, marker: Path, *arguments, **options) -> None:
        self.worker = getattr(importlib.import_module(module), name)(*arguments, **options)
        self.marker, self.chunks = marker, 0

    def __call__(self, chunk):
        results = self.worker(chunk)
        self.chunks += 1
        if self.chunks == 2 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return results


class VLLMWriter:
    """Continues prompts by vLLM, in float32."""

    def __init__(self, lm_type: str) -> None:
        engines = importlib.import_module("gainRAG.llm_inference.inference_vllm")
        self.engine = engines.VLLMEngine(engines.EngineOptions(lm_type, dtype="float32"))

    def __call__(self, prompts):
        return self.engine.generate(prompts, 12)
