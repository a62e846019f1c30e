"""Progress bars that keep a log readable: where the output is no terminal, a line every ten seconds at most."""

import logging
import sys
from typing import TextIO

from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0  # between two lines of a bar in a log, and before the first line of a bar inside another


class _Lines:
    """A text file that is given a bar's states and keeps each as a line of its own."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._last = ""

    def write(self, text: str) -> None:
        """Writes what is visible of a state; the blanks that clear a bar are nothing."""
        state = text.strip("\r\n\x1b[A ")
        if state and state != self._last:
            self._file.write(state + "\n")
            self._last = state

    def flush(self) -> None:
        """Hands on what is written."""
        self._file.flush()


class ProgressBar(tqdm):
    """tqdm with rate and time left. In a log a bar inside another (`leave=False`) shows up only if it takes long."""

    def __init__(self, *given, leave: bool = True, **options) -> None:
        if not sys.stderr.isatty():
            options |= {"file": _Lines(sys.stderr), "ncols": 100, "delay": 0 if leave else LOG_SECONDS}
            options |= {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS}
        super().__init__(*given, leave=leave, **options)


def report_few_passages(few: int, questions: int, flag: str, wanted: int) -> None:
    """Logs how many questions have fewer passages than a flag wants; nothing where all have enough."""
    if few:
        logger.info("%d of %d questions have fewer than %d passages (%s), all are used", few, questions, wanted, flag)
