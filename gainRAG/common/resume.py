"""The resumable output of a stage."""

import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

from gainRAG.common.cli import CHANGED, UserError
from gainRAG.common.jsonl import (
    Record,
    close_quietly,
    explain_write_errors,
    jsonl_items,
    line_of,
    open_locked,
    read_records,
    records_file_name,
    sync,
    write_json,
    write_records,
)
from gainRAG.common.progress import ProgressBar
from gainRAG.common.settings import STARTED_AFRESH, overwrite_hint, read_settings, require_same, settings_file

logger = logging.getLogger(__name__)

SYNC_SECONDS = 5.0  # at most this much finished work is lost when the machine itself dies


class StageOutput:
    """A stage's output file, safe to interrupt at any moment.

        with StageOutput(path, settings) as output:
            for chunk in output.remaining(records, size=64, description="gains"):
                output.append(work(chunk))

    Records go to `NAME.unfinished`; a second run with the same settings finds `done` of them there and adds the rest.
    When the block ends without an exception the file gets its final name and the settings become
    `NAME.settings.json`. One process at a time holds the file.

    Args:
        path: the final .jsonl or .json.
        settings: from `stage_settings`; a run with other settings is refused, naming the difference.
        overwrite: start afresh. A finished output keeps its name until the new one is complete. With CHANGED only where
            the settings are others; what was made with these stays, or resumes.

    Attributes:
        done: how many records an earlier run left; `remaining` skips them.
        complete: the final file exists, made with these settings: nothing is left to do.
        resumed: an earlier run with these settings began this output and did not finish it.

    Raises:
        UserError: the output belongs to other settings, to another running process, or cannot be written.
    """

    def __init__(self, path: str | Path, settings: Record, overwrite: str | bool = "") -> None:
        self.path = records_file_name(path)
        self.settings = json.loads(json.dumps(settings))
        self.unfinished = _unfinished_file(self.path)
        self._settings_path = settings_file(self.path)
        self._unfinished_settings = settings_file(self.unfinished)
        self.done = 0
        self.complete = False
        self.resumed = False
        self._file: Any = None
        self._progress: ProgressBar | None = None
        self._known = 0  # records of the first chunk that an earlier run wrote already
        with explain_write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open(overwrite)
            except BaseException:
                self.close()
                raise

    def _open(self, overwrite: str | bool) -> None:
        if self._unfinished_settings.exists() and not self.unfinished.exists() and self.path.exists():
            self._unfinished_settings.replace(self._settings_path)  # died between the two renames of finish()
        keep = overwrite == CHANGED
        if keep and self.path.exists() and not self._settings_path.exists() and not self.unfinished.exists():
            raise UserError(
                f"{self.path}: nothing says that it was made here, so it stays; move it, or give another name"
            )
        if keep and self.path.exists() and self._are_settings(self._settings_path):
            self.complete = True
        elif self.path.exists() and not overwrite and (not self.unfinished.exists() or self._only_the_whole_is_ours()):
            self._require_same(self._settings_path, "exists, made with other settings", finished=True)
            self.complete = True
        if self.complete:
            logger.info("%s is complete already, with the same settings", self.path)
            return
        self._file = open_locked(self.unfinished, self.path, "a+b")
        began = self._began_with_overwrite() or (keep and self._are_settings(self._unfinished_settings, finished=False))
        if not self._unfinished_settings.exists() or (overwrite and not began) or self._made_nothing_of_use():
            self._file.truncate(0)
        else:
            self._require_same(self._unfinished_settings, "has an unfinished run with other settings")
            self.resumed = True
        write_json(self._unfinished_settings, {**self.settings, STARTED_AFRESH: bool(overwrite)})
        self.done = self._cut_torn_line()
        if self.done:
            logger.info("%s: resumes after %d records of an earlier run", self.path, self.done)

    def _only_the_whole_is_ours(self) -> bool:
        """Whether the finished file has these settings, and the unfinished one, of a run that replaces it, others."""
        return self._are_settings(self._settings_path) and not self._are_settings(self._unfinished_settings)

    def _are_settings(self, path: Path, finished: bool = True) -> bool:
        try:
            require_same(path, self.settings, "", "", finished)
        except UserError:
            return False
        return True

    def _began_with_overwrite(self) -> bool:
        """Whether --overwrite began the unfinished run with these settings: given again after a kill, it resumes."""
        return read_settings(self.unfinished) == {**self.settings, STARTED_AFRESH: True}

    def _require_same(self, settings_path: Path, problem: str, finished: bool = False) -> None:
        require_same(settings_path, self.settings, f"{self.path} {problem}", overwrite_hint(), finished)

    def _made_nothing_of_use(self) -> bool:
        """Whether the unfinished run had other settings and did not come to its first record."""
        self._file.seek(0)
        return not self._file.readline().endswith(b"\n") and not self._are_settings(self._unfinished_settings, False)

    def _cut_torn_line(self) -> int:
        self._file.seek(0)
        whole = count = 0
        for line in self._file:
            if not line.endswith(b"}\n") or b"\0" in line:  # zeros: a page that a dying machine did not write any more
                break
            whole += len(line)
            count += 1
        self._file.truncate(whole)
        self._file.seek(whole)
        self._synced = time.monotonic()
        return count

    def remaining(
        self,
        records: Iterable[Record],
        size: int,
        description: str,
        total: int | None = None,
        unit: str = "question",
    ) -> Iterator[list[Record]]:
        """The records that have no output record yet, in chunks, with a progress bar that `append` moves.

        Chunks start at the same records in every run, and an interrupted one is given again whole: batches, and with
        them the last bits of every number, are those of a run that was never interrupted.

        Args:
            records: the stage's input, which has one output record for each.
            size: records a chunk.
            description: what the bar shows.
            total: how many records there are; None asks `len`.
            unit: what a record is.
        """
        if self.complete:
            return
        total = len(records) if total is None and isinstance(records, Sized) else total
        self._known = self.done % size
        self._progress = ProgressBar(total=total, initial=self.done - self._known, desc=description, unit=unit)
        left = itertools.islice(records, self.done - self._known, None)
        while chunk := list(itertools.islice(left, size)):
            yield chunk

    def append(self, records: list[Record]) -> None:
        """Adds a chunk's finished records: with the operating system at once, on the disk within SYNC_SECONDS."""
        with explain_write_errors(self.path):
            for record in records[self._known :]:
                self._file.write(line_of(record).encode() + b"\n")
                self._file.flush()
                if time.monotonic() - self._synced > SYNC_SECONDS:
                    os.fsync(self._file.fileno())
                    self._synced = time.monotonic()
        self._known = 0
        if self._progress is not None:
            self._progress.update(len(records))

    def finish(self) -> None:
        """Gives the complete output its final name."""
        with explain_write_errors(self.path):
            sync(self._file)
            if self.path.suffix == ".json":
                self._settings_path.unlink(missing_ok=True)  # of a former output, which this one replaces
                self._file.seek(0)
                write_records(self.path, map(json.loads, self._file))
                self.unfinished.unlink()
            else:
                self.unfinished.replace(self.path)
            self._unfinished_settings.replace(self._settings_path)
            self.close()
        logger.info("wrote %s", self.path)

    def records(self) -> Iterator[Record]:
        """The records written so far, or those of the complete file."""
        if self.complete or not self.unfinished.exists():
            yield from read_records(self.path)
        else:
            yield from (record for _, record in jsonl_items(self.unfinished))

    def close(self) -> None:
        """Closes the file; unfinished work stays for the next run."""
        if self._progress is not None:
            self._progress.close()
        if self._file:
            close_quietly(self._file)
            self._file = None

    def __enter__(self) -> "StageOutput":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        try:
            if kind is None and not self.complete and self._file:
                self.finish()
        finally:
            self.close()


def again(overwrite: str, output: StageOutput) -> str:
    """What --overwrite means for a file that is made on the way to `output`: given again after a kill, it keeps what
    the run before has made with the same settings."""
    return CHANGED if overwrite and output.resumed else overwrite


def overwrites_of(overwrite: str, paths: Sequence[Path]) -> list[str]:
    """What --overwrite means for each of the outputs that one command writes, in this order: given again after a kill,
    it keeps those before the one that it was writing, where they have the same settings."""
    written = [(read_settings(_unfinished_file(path)) or {}).get(STARTED_AFRESH, False) for path in paths]
    kept = written.index(True) if overwrite and True in written else 0
    return [CHANGED] * kept + [overwrite] * (len(paths) - kept)


def _unfinished_file(path: Path) -> Path:
    return path.with_name(path.name + ".unfinished")


def remove_output(path: Path) -> None:
    """Removes a finished stage output that another one has taken up, with its settings."""
    path.unlink(missing_ok=True)
    settings_file(path).unlink(missing_ok=True)
