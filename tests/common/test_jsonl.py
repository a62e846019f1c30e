"""Reading and writing of .jsonl and .json: what is accepted, what is refused, and writers that are interrupted."""

import errno
import json
import os

import pytest
from conftest import each, files_no_longer_than

from gainRAG.common import jsonl
from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import atomic_write, read_records, write_json, write_records
from gainRAG.common.schemas import as_question

QUESTION = {"id": "q1", "question": "Where?", "answers": ["Paris"]}


@each(
    ("content", "problem"),
    [
        (b"", ": holds no records"),
        (b"\n \n", ": holds no records"),
        (b'{"a": 1}\n{"a": \n', ":2: is not JSON"),
        (b'{"a": 1}\n{"question": "Wh', ":2: is not JSON"),
        (b'{"a": 1}\n[1, 2]\n', ":2: wanted an object, found list"),
        (b"\x1f\x8b\x08\x00junk\xff", ":1: is gzip; let its name end in .gz for a corpus"),
        ('{"a": "é"}\n'.encode("latin-1"), ":1: is not UTF-8 text"),
        ('{"a": 1}\n'.encode("utf-16"), ":1: is not UTF-8 text"),
        (b'{"a": "\\ud800"}\n', ":1: holds half of a surrogate pair"),
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


@each("name", ["out.jsonl", "out.json"])
@each("rows", [[], [{"a": "é\n\u2028"}], [{"a": 1}, {"b": [1.5, None]}]])
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


@each(
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


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_of_once_and_works(tmp_path, monkeypatch, caplog, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    jsonl.warn_of_missing_locks.cache_clear()
    monkeypatch.setattr(jsonl.fcntl, "flock", refuse)
    for number in range(3):
        write_json(tmp_path / "out.json", {"n": number})
    assert json.loads((tmp_path / "out.json").read_text()) == {"n": 2}
    assert [record.message for record in caplog.records if "has no locks" in record.message] == [caplog.messages[0]]


def test_a_block_that_fails_leaves_no_partial_file(tmp_path):
    with pytest.raises(UserError, match="cannot be written: No space"), atomic_write(tmp_path / "out.md") as file:
        file.write("half")
        raise OSError(errno.EIO, "No space")
    assert list(tmp_path.iterdir()) == []
