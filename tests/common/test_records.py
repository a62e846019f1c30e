"""Records: what the readers accept and refuse, and the writers under interruption, full disks and second processes."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import pytest
from conftest import REPOSITORY

from gainRAG import records
from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import read_records, write_json, write_records
from gainRAG.common.resume import StageOutput, fingerprint, stage_settings, write_in_chunks
from gainRAG.common.schemas import as_question, as_retrieved, as_supervised, as_training_group, passage_text

QUESTION = {"id": "q1", "question": "Where?", "answers": ["Paris"]}
GROUP = {"query": "Where?", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [-0.5], "neg_scores": [-1, -2.5]}
SETTINGS = stage_settings("test", {}, alpha=0.5)


def retrieved(**passage) -> dict:
    return {**QUESTION, "ctxs": [{"id": 1, "title": "t", "text": "x", "score": 1.5}, {"text": "y", **passage}]}


def supervised(**passage) -> dict:
    return {**QUESTION, "passages": [{"text": "x", "PPL_CD": 2.0}, {"text": "y", "PPL_CD": 3.0, **passage}]}


@contextmanager
def files_no_longer_than(size: int):
    """The operating system's own refusal to write on, for this process."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)


# --- shapes and reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["answers", "golden_answers", "answer"])
def test_gold_answers_have_three_names(name):
    record = {"question": "Where?", name: ["Paris", "Lutetia"], "level": {"hard": 1}}
    assert as_question(record) == {**record, "answers": ["Paris", "Lutetia"]}
    assert as_question({"question": "Where?", name: "Paris"})["answers"] == ["Paris"]


@pytest.mark.parametrize(
    ("shape", "record", "problem"),
    [
        (as_question, {"answers": ["a"]}, "field 'question': missing"),
        (as_question, {"question": "  ", "answers": ["a"]}, "field 'question'.*empty"),
        (as_question, {"question": 5, "answers": ["a"]}, "field 'question': 5 is not text"),
        (as_question, {"question": "q"}, "field 'answers': missing.*golden_answers"),
        (as_question, {"question": "q", "answers": []}, "field 'answers'.*at least one"),
        (as_question, {"question": "q", "answers": ["a", " "]}, "field 'answers': ' ' is not a gold answer"),
        (as_question, {"question": "q", "answers": ["a", 3]}, "field 'answers': 3 is not a gold answer"),
        (as_question, {"question": "q", "answers": {"a": 1}}, "field 'answers': wanted a list"),
        (as_question, {**QUESTION, "choices": ["x", "y"]}, "field 'choices': wanted an object"),
        (as_question, {**QUESTION, "choices": {"label": ["A"], "text": []}}, "field 'choices'.*equally long"),
        (as_retrieved, QUESTION, "field 'ctxs': missing"),
        (as_retrieved, {**QUESTION, "ctxs": {}}, "field 'ctxs': wanted a list, found dict"),
        (as_retrieved, retrieved(text=None), r"field 'ctxs\[1\]': wanted an object with 'text'"),
        (as_retrieved, {**QUESTION, "ctxs": ["x"]}, r"field 'ctxs\[0\]'"),
        (as_retrieved, retrieved(title=7), r"field 'ctxs\[1\].title'"),
        (as_retrieved, retrieved(score=float("nan")), r"field 'ctxs\[1\].score': nan is not a finite number"),
        (as_supervised, QUESTION, "field 'passages': missing"),
        (as_supervised, supervised(PPL_CD=float("inf")), r"field 'passages\[1\].PPL_CD': inf"),
        (as_supervised, supervised(PPL_CD="2"), r"field 'passages\[1\].PPL_CD': '2' is not a finite number"),
        (as_supervised, supervised(PPL_CD=True), r"field 'passages\[1\].PPL_CD': True"),
        (as_supervised, supervised(retrieved_ppl=-3), r"field 'passages\[1\].retrieved_ppl': -3 is below 0"),
        (as_training_group, {**GROUP, "query": ""}, "field 'query'"),
        (as_training_group, {**GROUP, "neg": []}, "field 'neg_scores'|field 'neg': empty"),
        (as_training_group, {**GROUP, "neg_scores": [-1]}, "field 'neg_scores': 1 scores for 2 passages in 'neg'"),
        (as_training_group, {**GROUP, "pos": [1]}, r"field 'pos\[0\]': 1 is not text"),
        (as_training_group, {**GROUP, "neg_scores": [-1, None]}, r"field 'neg_scores\[1\]': None"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(write_jsonl, shape, record, problem):
    good = {as_question: QUESTION, as_retrieved: retrieved(), as_supervised: supervised(), as_training_group: GROUP}
    path = write_jsonl("data.jsonl", [good[shape], record])
    with pytest.raises(UserError, match=rf"data\.jsonl:2: ({problem})"):
        list(read_records(path, shape))


def test_a_signal_may_be_required():
    assert as_supervised(supervised(), "PPL_CD")["passages"][1]["PPL_CD"] == 3.0
    with pytest.raises(records.FieldError, match=r"passages\[0\].retrieved_ppl': missing"):
        as_supervised(supervised(), "retrieved_ppl")


def test_good_records_pass_untouched(write_jsonl):
    rows = [retrieved(extra=[1, {"a": None}], title=None, score=None), {**retrieved(score="82.1"), "ctxs": []}]
    assert list(read_records(write_jsonl("a.jsonl", rows), as_retrieved)) == rows
    assert list(read_records(write_jsonl("b.jsonl", [GROUP]), as_training_group)) == [GROUP]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", ": holds no records"),
        (b"\n \n", ": holds no records"),
        (b'{"a": 1}\n{"a": \n', ":2: is not JSON"),
        (b'{"a": 1}\n{"question": "Wh', ":2: is not JSON"),
        (b'{"a": 1}\n[1, 2]\n', ":2: wanted an object, found list"),
        (b"\x1f\x8b\x08\x00junk\xff", ":1: is not UTF-8 text"),
        ('{"a": "é"}\n'.encode("latin-1"), ":1: is not UTF-8 text"),
        ('{"a": 1}\n'.encode("utf-16"), ":1: is not UTF-8 text"),
        (b'{"a": "\\ud800"}\n', ":1: is not UTF-8 text"),
        (b"[" * 200_000, ":1: is not JSON"),
    ],
)
def test_unreadable_content_is_named(tmp_path, content, problem):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        list(read_records(path))
    assert f"{path}{problem}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bom_crlf_blank_lines_and_a_missing_last_newline_are_read(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"a": "é \u2028 😀"}\r\n\r\n{"a": 2}'.encode())
    assert list(read_records(path)) == [{"a": "é \u2028 😀"}, {"a": 2}]


def test_long_lines_are_read(write_jsonl):
    rows = [{"a": "x" * 10_000_000}, {"a": "y"}]
    assert list(read_records(write_jsonl("data.jsonl", rows))) == rows


def test_json_lists_are_read_and_their_items_named(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([QUESTION, {"question": "q"}]))
    with pytest.raises(UserError, match=r"data\.json: item 2: field 'answers': missing"):
        list(read_records(path, as_question))
    path.write_text('{"question": "q"}')
    with pytest.raises(UserError, match="wanted one list of objects, found dict"):
        list(read_records(path))


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(UserError, match="gone.jsonl: no such file"):
        list(read_records(tmp_path / "gone.jsonl"))
    with pytest.raises(UserError, match="is a folder"):
        list(read_records(tmp_path))
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"ends in \.jsonl"):
        list(read_records(tmp_path / "data.csv"))
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        list(read_records("x" * 5000 + ".jsonl"))


def test_passage_text():
    assert passage_text({"title": "T", "text": "x"}) == "T\nx"
    assert passage_text({"title": None, "text": "x"}) == passage_text({"text": "x"}) == "x"


# --- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.jsonl", "out.json"])
@pytest.mark.parametrize("rows", [[], [{"a": "é\n\u2028"}], [{"a": 1}, {"b": [1.5, None]}]])
def test_write_records_round_trip(tmp_path, name, rows):
    path = tmp_path / "new" / name
    assert write_records(path, iter(rows)) == len(rows)
    if rows:
        assert list(read_records(path)) == rows
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_a_failing_writer_leaves_the_former_file(tmp_path):
    path = tmp_path / "out.jsonl"
    write_records(path, [{"a": 1}])

    def failing():
        yield {"a": 2}
        raise UserError("bad input")

    with pytest.raises(UserError, match="bad input"):
        write_records(path, failing())
    assert path.read_text() == '{"a": 1}\n'
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match=r"ends in \.jsonl or \.json"):
        write_records(tmp_path / "out.txt", [])


def test_a_dead_writers_remains_are_taken_over_and_a_living_one_is_not_disturbed(tmp_path):
    path = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.partial").write_text('{"a": 1}\n{"a"')

    def rows():
        yield {"a": 2}
        with pytest.raises(UserError, match="out.jsonl: another process is writing this output"):
            write_records(path, [{"a": 3}])

    assert write_records(path, rows()) == 1
    assert path.read_text() == '{"a": 2}\n'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [10, 100_000])  # below and above what a file object holds back
def test_a_refused_write_is_one_sentence_and_leaves_nothing(tmp_path, size):
    with files_no_longer_than(size // 2), pytest.raises(UserError, match="cannot be written: File too large"):
        write_records(tmp_path / "out.jsonl", [{"a": "x" * size}, {"a": "y"}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "the disk is full.*finished work is kept"),
        (errno.EDQUOT, "your quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission denied; choose a folder"),
    ],
)
def test_the_systems_refusals_are_explained(tmp_path, monkeypatch, code, hint):
    def refuse(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=hint):
        write_json(tmp_path / "out.json", {})
    assert list(tmp_path.iterdir()) == []


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


# --- resumable stage output -------------------------------------------------------------------------------------


def write_some(path, count, settings=SETTINGS, finish=True, **options):
    """Goes on to `count` records and finishes, or leaves them unfinished; returns how many were there."""
    with StageOutput(path, settings, **options) as writer:
        done = writer.done
        if not writer.complete:
            for number in range(done, count):
                writer.append({"n": number, "text": "é"})
            if finish:
                writer.finish()
        return done


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
    assert json.loads((tmp_path / f"{name}.settings.json").read_text()) == SETTINGS


ZEROS = b"\0" * 4096  # a page that a dying machine did not write, before one that it did


@pytest.mark.parametrize("torn", [b'{"n": 2, "te', b'{"n": 2, "text": "\xc3', ZEROS, ZEROS + b'": 2}\n{"n": 3}\n'])
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
    with StageOutput(path, SETTINGS) as writer:
        assert writer.complete
        assert [record["n"] for record in writer.records()] == [0, 1, 2]
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
    assert json.loads((tmp_path / "out.jsonl.settings.json").read_text()) == other


def test_overwrite_starts_an_unfinished_output_afresh(tmp_path):
    path = tmp_path / "out.jsonl"
    write_some(path, 3, finish=False)
    assert write_some(path, 1, overwrite=True) == 0
    assert len(path.read_bytes().splitlines()) == 1


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
        with StageOutput(path, SETTINGS, overwrite) as writer, monkeypatch.context() as patch:
            for number in range(3):
                writer.append({"n": number, "text": "é"})
            died = _dies_after(patch, survived)
            try:
                writer.finish()
            except KeyboardInterrupt:
                assert died
        write_some(path, 3)
        assert path.read_bytes() == whole.read_bytes(), f"after {survived} steps"
        assert json.loads((tmp_path / f"{name}.settings.json").read_text()) == SETTINGS
        left = {file.name for file in tmp_path.glob(f"{name}*")} - {name, f"{name}.settings.json"}
        assert not left
        if not died:
            break
    assert survived >= 2


def _dies_after(patch, steps: int) -> list:
    taken, died = [], []

    def counted(method):
        original = getattr(records.Path, method)

        def step(self, *arguments, **options):
            if len(taken) == steps:
                died.append(method)
                raise KeyboardInterrupt
            taken.append(method)
            return original(self, *arguments, **options)

        patch.setattr(records.Path, method, step)

    for method in ("replace", "unlink"):
        counted(method)
    return died


def test_a_second_process_is_refused(tmp_path, run_python):
    path = tmp_path / "out.jsonl"
    second = f"from gainRAG.records import StageOutput\nStageWriter({str(path)!r}, {SETTINGS!r})"
    with StageOutput(path, SETTINGS) as writer:
        writer.append({"n": 0, "text": "é"})
        refused = run_python("-c", second)
        assert "UserError" in refused.stderr
        assert "another process is writing this output" in refused.stderr
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
from gainRAG.records import StageOutput
disk = pathlib.Path(sys.argv[1])
def write(disk):
    try:
        with StageOutput(disk / sys.argv[2], {}) as writer:
            print(writer.done)
            for number in range(writer.done, 100):
                writer.append({"n": number, "text": "x" * 100})
            writer.finish()
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
    monkeypatch.setattr(records.time, "monotonic", lambda: now[0])
    with StageOutput(tmp_path / "out.jsonl", SETTINGS) as writer:
        synced.clear()  # the settings beside it
        for number in range(30):
            now[0] += 1.0
            writer.append({"n": number})
        assert len(synced) == 5
        assert (tmp_path / "out.jsonl.unfinished").read_text().count("\n") == 30


@pytest.mark.parametrize("interrupted_at", range(11))
def test_chunks_give_equal_bytes_wherever_they_stop(tmp_path, interrupted_at):
    """`work` gives numbers that depend on the whole chunk, as batched arithmetic does in its last bits."""

    def run(path, stop_after=None):
        seen = []

        def work(chunk):
            seen.append([record["n"] for record in chunk])
            return [{**record, "sum": sum(r["n"] for r in chunk)} for record in chunk]

        with StageOutput(path, SETTINGS) as writer:
            if stop_after is not None:
                append = writer.append

                def stops(record):
                    if record["n"] == stop_after:
                        raise KeyboardInterrupt
                    append(record)

                writer.append = stops
            write_in_chunks(writer, [{"n": number} for number in range(10)], 4, partial(map, work), "test")
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
    (tmp_path / "b.jsonl").write_bytes(b"")
    assert fingerprint(tmp_path / "b.jsonl") == fingerprint(file)  # by content, not by name or place
    before = fingerprint(tmp_path)
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    assert fingerprint(tmp_path) != before
    settings = stage_settings("s", {"data": file, "model": "owner/name", "none": None}, alpha=1)
    assert settings["inputs"] == {"data": fingerprint(file), "model": "owner/name", "none": None}
    assert {"torch", "transformers"} <= settings["versions"].keys()
    assert str(REPOSITORY) not in json.dumps(settings)
