"""The resumable output of a stage: kills, full disks, second processes; settings and fingerprints."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest
from conftest import REPOSITORY, each, files_no_longer_than

from gainRAG.common import resume
from gainRAG.common.cli import CHANGED, UserError
from gainRAG.common.jsonl import read_records, write_json
from gainRAG.common.resume import StageOutput
from gainRAG.common.settings import STARTED_AFRESH, fingerprint, identity, stage_settings

SETTINGS = stage_settings("test", {}, alpha=0.5)


def settings_of(path) -> dict:
    settings = json.loads(path.with_name(f"{path.name}.settings.json").read_text())
    settings.pop(STARTED_AFRESH)
    return settings


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    for write in (lambda path: write_json(path, {}), lambda path: StageOutput(path, SETTINGS)):
        with pytest.raises(UserError, match="permission denied; choose a folder"):
            write(tmp_path / "out.json")


def test_outputs_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        StageOutput(tmp_path / "file" / "out.jsonl", SETTINGS)
    with pytest.raises(UserError, match="is a folder, the output is a file"):
        StageOutput(tmp_path / "folder.jsonl", SETTINGS)
    with pytest.raises(UserError, match=r"an output's name ends in \.jsonl or \.json"):
        StageOutput(tmp_path / "out.txt", SETTINGS)


class Stop(Exception):
    """Ends a run before its output is complete."""


def write_some(path, count, settings=SETTINGS, finish=True, **options):
    """Resumes up to `count` records and finishes, or leaves them unfinished; returns how many were there."""
    rows = [{"n": number, "text": "é"} for number in range(count)]
    with suppress(Stop), StageOutput(path, settings, **options) as output:
        done = output.done
        for chunk in output.remaining(rows, 1, "test"):
            output.append(chunk)
        if not finish:
            raise Stop
    return done


def test_a_run_that_made_nothing_does_not_hold_up_one_with_other_settings(tmp_path):
    path, other = tmp_path / "out.jsonl", stage_settings("test", {}, alpha=1.0)
    write_some(path, 0, other, finish=False)
    assert write_some(path, 2) == 0 and settings_of(path)["flags"] == {"alpha": 0.5}
    path.unlink()
    write_some(path, 1, other, finish=False)
    with pytest.raises(UserError, match="unfinished run with other settings"):
        write_some(path, 2)


@pytest.mark.parametrize("name", ["out.jsonl", "out.json"])
def test_an_unfinished_output_goes_on(tmp_path, name):
    path, whole = tmp_path / name, tmp_path / f"whole-{name}"
    write_some(whole, 5)
    assert write_some(path, 2, finish=False) == 0
    assert not path.exists()
    assert write_some(path, 4, finish=False) == 2
    assert write_some(path, 5) == 4
    assert path.read_bytes() == whole.read_bytes()
    assert list(read_records(path)) == [{"n": number, "text": "é"} for number in range(5)]
    assert sorted(file.name for file in tmp_path.glob(f"{name}*")) == [name, f"{name}.settings.json"]
    assert settings_of(path) == SETTINGS


ZEROS = b"\0" * 4096  # a page that a dying machine did not write, before one that it did


@each("torn", [b'{"n": 2, "te', b'{"n": 2, "text": "\xc3', ZEROS, ZEROS + b'": 2}\n{"n": 3}\n'])
def test_a_torn_last_line_is_cut(tmp_path, torn):
    path = tmp_path / "out.jsonl"
    write_some(path, 2, finish=False)
    with (tmp_path / "out.jsonl.unfinished").open("ab") as file:
        file.write(torn)
    assert write_some(path, 3) == 2
    assert [record["n"] for record in read_records(path)] == [0, 1, 2]


def test_a_complete_output_is_left_alone_and_read_back(tmp_path):
    path = tmp_path / "out.jsonl"
    write_some(path, 3)
    with StageOutput(path, SETTINGS) as output:
        assert output.complete
        assert list(output.remaining([{"n": 0}], 1, "test")) == []
        assert [record["n"] for record in output.records()] == [0, 1, 2]
    assert not (tmp_path / "out.jsonl.unfinished").exists()


@pytest.mark.parametrize("finish", [True, False])
def test_other_settings_are_refused_with_both_values(tmp_path, finish):
    path = tmp_path / "out.jsonl"
    write_some(path, 3, finish=finish)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"out\.jsonl .*\(alpha: 0\.5 then, 0\.7 now\): --overwrite starts afresh"):
        StageOutput(path, stage_settings("test", {}, alpha=0.7))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert write_some(path, 3) == (0 if finish else 3)


def test_an_output_of_unknown_origin_is_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("precious")
    with pytest.raises(UserError, match=r"no out\.jsonl\.settings\.json beside it"):
        StageOutput(path, SETTINGS)
    assert path.read_text() == "precious"
    (tmp_path / "out.jsonl.settings.json").write_text("{torn")
    with pytest.raises(UserError, match="settings.json: is not JSON"):
        StageOutput(path, SETTINGS)


def test_overwrite_keeps_the_old_output_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "out.jsonl"
    write_some(path, 3)
    former = path.read_bytes()
    other = stage_settings("test", {}, alpha=0.7)
    assert write_some(path, 2, other, finish=False, overwrite=True) == 0
    assert path.read_bytes() == former
    assert write_some(path, 4, other, finish=False) == 2
    assert path.read_bytes() == former
    assert write_some(path, 5, other) == 4
    assert len(path.read_bytes().splitlines()) == 5
    assert settings_of(path) == other


def test_overwrite_starts_afresh_once(tmp_path):
    """A run begun with --overwrite and killed resumes when the same command is given again."""
    path = tmp_path / "out.jsonl"
    write_some(path, 3, finish=False)
    assert write_some(path, 1, finish=False, overwrite=True) == 0
    assert write_some(path, 2, finish=False, overwrite=True) == 1
    assert write_some(path, 3, overwrite=True) == 2
    assert write_some(path, 3, overwrite=True) == 0  # complete: asked again, it is made anew
    other = stage_settings("test", {}, alpha=0.7)
    write_some(path, 2, finish=False, overwrite=True)
    assert write_some(path, 2, other, overwrite=True) == 0


def test_overwriting_what_changed_leaves_the_rest(tmp_path):
    path = tmp_path / "out.jsonl"
    other = stage_settings("test", {}, alpha=0.7)
    write_some(path, 3)
    with StageOutput(path, SETTINGS, CHANGED) as output:
        assert output.complete
    assert write_some(path, 2, other, finish=False, overwrite=CHANGED) == 0
    assert write_some(path, 4, other, finish=False, overwrite=CHANGED) == 2
    with StageOutput(path, SETTINGS, CHANGED) as output:  # changed back: the whole one is there still
        assert output.complete
    assert write_some(path, 5, other, overwrite=CHANGED) == 4
    assert settings_of(path) == other
    with StageOutput(path, other, CHANGED) as output:
        assert output.complete


def test_a_file_of_unknown_origin_is_not_overwritten_as_changed(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("precious")
    with pytest.raises(UserError, match="nothing says that it was made here"):
        StageOutput(path, SETTINGS, CHANGED)
    assert path.read_text() == "precious"


def test_a_json_output_that_dies_while_it_replaces_another_is_not_taken_for_it(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    write_some(path, 3)
    other = stage_settings("test", {}, alpha=0.7)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(resume.Path, "unlink", dies_at(path.with_name("out.json.unfinished"), resume.Path.unlink))
        with StageOutput(path, other, "all") as output:
            output.append([{"n": 9}])
    with pytest.raises(UserError, match="alpha"):
        StageOutput(path, SETTINGS)
    assert write_some(path, 3, other) == 1


def dies_at(path, unlink):
    def stops(self, *arguments, **options):
        if self == path:
            raise Stop
        return unlink(self, *arguments, **options)

    return stops


def test_overwriting_what_changed_resumes_what_began_without(tmp_path):
    path = tmp_path / "out.jsonl"
    write_some(path, 2, finish=False)
    assert write_some(path, 3, overwrite=CHANGED) == 2


def test_a_whole_output_is_taken_beside_an_unfinished_one_of_other_settings(tmp_path):
    path = tmp_path / "out.jsonl"
    write_some(path, 3)
    other = stage_settings("test", {}, alpha=0.7)
    write_some(path, 2, other, finish=False, overwrite=True)
    with StageOutput(path, SETTINGS) as output:
        assert output.complete
    assert write_some(path, 4, other) == 2


def versions_of(**named) -> dict:
    return {**SETTINGS, "versions": {**SETTINGS["versions"], **named}}


def test_other_versions_are_warned_of_when_finished_and_refused_when_not(tmp_path, caplog):
    path = tmp_path / "out.jsonl"
    write_some(path, 2, versions_of(torch="1.0"), finish=False)
    with pytest.raises(UserError, match=r"torch: '1\.0' then, '.*' now"):
        write_some(path, 2)
    write_some(path, 2, versions_of(torch="1.0"))
    assert write_some(path, 2) == 0
    assert "made with other versions of libraries (torch: '1.0' then" in caplog.text


def test_records_without_settings_are_not_trusted(tmp_path):
    (tmp_path / "out.jsonl.unfinished").write_text('{"n": 9}\n')
    assert write_some(tmp_path / "out.jsonl", 2) == 0
    assert [record["n"] for record in read_records(tmp_path / "out.jsonl")] == [0, 1]


@pytest.mark.parametrize("name", ["out.jsonl", "out.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_dying_anywhere_in_finish_loses_nothing(tmp_path, monkeypatch, name, overwrite):
    """Each step of the file system in `finish` is the last one once; the same command then ends as if none had."""
    path, whole = tmp_path / name, tmp_path / f"whole-{name}"
    write_some(whole, 3)
    for survived in range(10):
        for file in tmp_path.glob(f"{name}*"):
            file.unlink()
        if overwrite:
            write_some(path, 1, stage_settings("test", {}, alpha=0.7))
        with StageOutput(path, SETTINGS, overwrite) as output, monkeypatch.context() as patch:
            output.append([{"n": number, "text": "é"} for number in range(3)])
            died = _dies_after(patch, survived)
            try:
                output.finish()
            except KeyboardInterrupt:
                assert died
                output.close()
        write_some(path, 3)
        assert path.read_bytes() == whole.read_bytes(), f"after {survived} steps"
        assert settings_of(path) == SETTINGS
        left = {file.name for file in tmp_path.glob(f"{name}*")} - {name, f"{name}.settings.json"}
        assert not left
        if not died:
            break
    assert survived >= 2


def _dies_after(patch, steps: int) -> list:
    taken, died = [], []

    def counted(method):
        original = getattr(resume.Path, method)

        def step(self, *arguments, **options):
            if len(taken) == steps:
                died.append(method)
                raise KeyboardInterrupt
            taken.append(method)
            return original(self, *arguments, **options)

        patch.setattr(resume.Path, method, step)

    for method in ("replace", "unlink"):
        counted(method)
    return died


def test_a_second_process_is_refused(tmp_path, run_python):
    path = tmp_path / "out.jsonl"
    second = f"from gainRAG.common.resume import StageOutput\nStageOutput({str(path)!r}, {SETTINGS!r})"
    with suppress(Stop), StageOutput(path, SETTINGS) as output:
        output.append([{"n": 0, "text": "é"}])
        refused = run_python("-c", second)
        assert "UserError" in refused.stderr
        assert "another process is writing this output" in refused.stderr
        raise Stop
    assert run_python("-c", second).returncode == 0
    assert write_some(path, 2) == 1


def test_a_full_disk_keeps_what_is_done(tmp_path):
    path, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    write_some(whole, 50)
    with files_no_longer_than(len(whole.read_bytes()) // 2), pytest.raises(UserError, match="out.jsonl: cannot be"):
        write_some(path, 50)
    assert not path.exists()
    assert 10 < write_some(path, 50) < 50
    assert path.read_bytes() == whole.read_bytes()


FULL_DISK = """
import os, pathlib, sys
from gainRAG.common.cli import UserError
from gainRAG.common.resume import StageOutput
disk = pathlib.Path(sys.argv[1])
def write(disk):
    try:
        with StageOutput(disk / sys.argv[2], {}) as output:
            print(output.done)
            rows = [{"n": number, "text": "x" * 100} for number in range(100)]
            for chunk in output.remaining(rows, 1, "test"):
                output.append(chunk)
    except UserError as problem:
        print(problem)
os.system(f"mount -t tmpfs -o size=64k tmpfs {disk}")
write(disk / "whole")
whole = (disk / "whole" / sys.argv[2]).read_bytes()
(disk / "ballast").write_bytes(bytes(36 << 10))
write(disk)
print((disk / sys.argv[2]).exists(), (disk / "whole" / sys.argv[2]).read_bytes() == whole)
os.system(f"mount -o remount,ro {disk}")
write(disk)
os.system(f"mount -o remount,rw {disk}")
(disk / "ballast").unlink()
write(disk)
print((disk / sys.argv[2]).read_bytes() == whole)
"""


@pytest.mark.parametrize("name", ["out.jsonl", "out.json"])
def test_a_really_full_and_a_read_only_disk(own_mounts, tmp_path, name):
    command = [*own_mounts, sys.executable, "-c", FULL_DISK, tmp_path, name]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    before, started, full, kept, read_only, resumed, same = done.stdout.splitlines()
    assert (before, started) == ("0", "0")
    assert f"{name}: cannot be written: the disk is full; make space and run the same command again" in full
    assert kept == "False True"  # nothing under the final name, and what was complete is as it was
    assert f"{name}: cannot be written: the file system is read-only" in read_only
    assert int(resumed) > 10
    assert same == "True"


def test_work_is_synced_at_bounded_intervals(tmp_path, monkeypatch):
    synced, now = [], [0.0]
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    with suppress(Stop), StageOutput(tmp_path / "out.jsonl", SETTINGS) as output:
        synced.clear()  # the settings beside it
        for number in range(30):
            now[0] += 1.0
            output.append([{"n": number}])
        assert len(synced) == 5
        assert (tmp_path / "out.jsonl.unfinished").read_text().count("\n") == 30
        raise Stop


@each("interrupted_at", range(11))
def test_chunks_give_equal_bytes_wherever_they_stop(tmp_path, interrupted_at):
    """The loop makes numbers that depend on the whole chunk, as batched arithmetic does in its last bits."""

    def run(path, stop_after=None):
        seen = []
        with StageOutput(path, SETTINGS) as output, pytest.MonkeyPatch.context() as patch:
            written = resume.line_of

            def stops(record):
                if record["n"] == stop_after:
                    raise KeyboardInterrupt
                return written(record)

            patch.setattr(resume, "line_of", stops)
            for chunk in output.remaining([{"n": number} for number in range(10)], 4, "test"):
                seen.append([record["n"] for record in chunk])
                output.append([{**record, "sum": sum(r["n"] for r in chunk)} for record in chunk])
        return seen

    whole, path = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert run(whole) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    try:
        run(path, interrupted_at)
    except KeyboardInterrupt:
        resumed = run(path)
        assert resumed[0][0] == interrupted_at // 4 * 4  # finished chunks are not worked on again
    assert path.read_bytes() == whole.read_bytes()


def test_fingerprints_and_settings(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"x" * 3_000_000)
    seen = {fingerprint(file)}
    layers = b"x" * 1_100_000 + b"y" * 100_000 + b"x" * 1_800_000  # head and tail as they were
    for change in (b"y" + b"x" * 2_999_999, b"x" * 2_999_999 + b"y", b"x" * 3_000_001, layers, b""):
        file.write_bytes(change)
        seen.add(fingerprint(file))
    assert len(seen) == 6
    file.write_bytes(b"x" * 3_000_000)
    known = identity(file)
    file.write_bytes(b"x" * 1_500_000 + b"y" + b"x" * 1_499_999)  # of records every byte counts
    assert identity(file) != known
    file.write_bytes(b"")
    (tmp_path / "b.jsonl").write_bytes(b"")
    assert fingerprint(tmp_path / "b.jsonl") == fingerprint(file)  # by content, not by name or place
    before = fingerprint(tmp_path)
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    assert fingerprint(tmp_path) != before
    settings = stage_settings("s", {"data": file, "model": "owner/name", "none": None}, alpha=1)
    assert settings["inputs"] == {"data": fingerprint(file), "model": "owner/name", "none": None}
    assert {"torch", "transformers"} <= settings["versions"].keys()
    assert str(REPOSITORY) not in json.dumps(settings)


def test_only_what_a_model_computes_with_counts(tmp_path):
    """A README, a download's cache or a deleted checkpoint beside the weights is no other model."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "merges.txt"):
        (model / name).write_text(name)
    before = identity(model)
    (model / "README.md").write_text("read")
    (model / "training_args.bin").write_bytes(b"pickle")
    for below in (".cache", "checkpoint-1000"):
        (model / below).mkdir()
        (model / below / "model.safetensors").write_text("old")
    assert identity(model) == before
    for name in ("config.json", "model.safetensors", "tokenizer.json", "merges.txt", "chat_template.jinja"):
        (model / name).write_text("other")
        assert identity(model) != before
        before = identity(model)
