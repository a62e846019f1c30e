"""The passage store: what goes in comes out, whatever the format; a bad corpus is named by file and line."""

import csv
import gzip
import json
import threading

import pytest
from conftest import each

from gainRAG.common.cli import UserError
from gainRAG.retrieval_engine.corpus import read_corpus
from gainRAG.retrieval_engine.passages import open_store, store_folder

PASSAGES = [
    {"id": "1", "title": "Aaron", "text": 'Aaron ("Ahärôn") is a prophet.'},
    {"id": "x 7", "title": "", "text": "日本語 \U0001f600, a\ttab"},
    {"id": "3", "title": "Łódź", "text": ""},
    {"id": "10", "title": "Line", "text": "one\ntwo"},
]


def write_table(path, passages, header=("id", "text", "title")):
    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows([passage[column] for column in header] for passage in passages)
    return path


@pytest.mark.parametrize("name", ["c.tsv", "c.tsv.gz"])
def test_a_table_comes_back_as_written(tmp_path, name):
    store = open_store(write_table(tmp_path / name, PASSAGES))
    assert list(store) == PASSAGES
    assert store[store.positions(["x 7"])[0]] == PASSAGES[1]
    assert store[len(store) - 1] == PASSAGES[-1]
    assert store.positions(["10", "1"]).tolist() == [3, 0]


def test_columns_in_any_order(tmp_path):
    assert list(open_store(write_table(tmp_path / "c.tsv", PASSAGES, ("title", "id", "text")))) == PASSAGES


def test_json_lines_and_contents(write_jsonl):
    path = write_jsonl("c.jsonl", [*PASSAGES, {"id": 11, "contents": '"A Title"\nand\ntext'}])
    assert list(open_store(path)) == [*PASSAGES, {"id": "11", "title": "A Title", "text": "and\ntext"}]


def test_an_unknown_id_and_a_position_out_of_range(write_jsonl):
    store = open_store(write_jsonl("c.jsonl", PASSAGES))
    with pytest.raises(KeyError, match="nobody"):
        store.positions(["1", "nobody", "3"])
    with pytest.raises(IndexError, match="passage 4 of 4"):
        store[4]


def test_one_text_in_three_formats_has_one_digest(tmp_path, write_jsonl):
    stores = [open_store(write_table(tmp_path / name, PASSAGES)) for name in ("a.tsv", "b.tsv.gz")]
    stores.append(open_store(write_jsonl("c.jsonl", PASSAGES)))
    assert len({store.fingerprint for store in stores}) == 1


def test_the_store_is_made_once_and_anew_when_the_corpus_changes(write_jsonl, tmp_path):
    path = write_jsonl("c.jsonl", PASSAGES)
    store = open_store(path, tmp_path / "elsewhere")
    made = (store.folder / "meta.json").stat().st_mtime_ns
    assert store.folder == store_folder(path, tmp_path / "elsewhere")
    assert (open_store(path, tmp_path / "elsewhere").folder / "meta.json").stat().st_mtime_ns == made
    path.write_text(path.read_text("utf-8").replace("Aaron", "Bbron"), "utf-8")
    assert open_store(path, tmp_path / "elsewhere")[0]["title"] == "Bbron"


def test_many_readers_make_one_store(write_jsonl):
    path = write_jsonl("c.jsonl", [{"id": str(i), "title": "t", "text": "x" * (i % 7)} for i in range(3000)])
    lengths = []
    threads = [threading.Thread(target=lambda: lengths.append(len(open_store(path)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [3000] * 3
    assert not list(path.parent.glob("*.partial"))


def refusal(path) -> str:
    """The message, after checking that nothing half-built is left."""
    with pytest.raises(UserError) as refused:
        open_store(path)
    assert not store_folder(path).exists()
    assert not list(path.parent.glob("*.partial"))
    return str(refused.value)


def test_duplicate_ids(tmp_path, write_jsonl):
    path = write_jsonl("c.jsonl", [*PASSAGES, PASSAGES[2]])
    assert refusal(path) == f"{path}:5: id '3' is in line 3 already; ids must differ"
    path = write_table(tmp_path / "c.tsv", [*PASSAGES, PASSAGES[0]])
    assert "c.tsv:7: id '1' is in line 2 already" in refusal(path)  # a passage above spans two lines


def test_missing_columns(tmp_path):
    path = write_table(tmp_path / "c.tsv", PASSAGES, ("id", "text"))
    assert f"{path}:1: the header lacks title" in refusal(path)
    path.write_text("id\ttext\ttitle\n1\ta\tA\n2\tb\n", "utf-8")
    assert f"{path}:3: 2 columns, wanted id, text, title" in refusal(path)


@each(
    ("line", "message"),
    [
        ('{"title": "a", "text": "b"}', "c.jsonl:2: field 'id' is missing"),
        ('{"id": "2", "title": "a"}', "c.jsonl:2: field 'text' is missing"),
        ('{"id": "2", "title": "a", "text": 5}', "c.jsonl:2: field 'text': 5 is not text"),
        ('{"id": "2", "title": 1, "text": "a"}', "c.jsonl:2: field 'title': 1 is not text"),
        ('{"id": "", "title": "a", "text": "b"}', "c.jsonl:2: '' is no passage id"),
        ('{"id": "2", "title": "a", "text": "\\ud800"}', "c.jsonl:2: holds half of a surrogate pair"),
        ("[1]", "c.jsonl:2: wanted an object, found list"),
        ('{"id": ', "c.jsonl:2: is not JSON"),
    ],
)
def test_bad_json_lines(tmp_path, line, message):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(PASSAGES[0]) + "\n" + line + "\n", "utf-8")
    assert message in refusal(path)


def test_bad_utf8(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_bytes(b"id\ttext\ttitle\n1\tgood\tA\n2\tcaf\xe9\tB\n")
    assert f"{path}:3: is not UTF-8 text; save the file as UTF-8 (byte 5)" in refusal(path)


def test_a_quotation_mark_left_open(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_text('id\ttext\ttitle\n1\ta\tA\n2\t"b\tB\n3\tc\tC\n', "utf-8")
    assert f"{path}:3: a field opens with a quotation mark that is not closed" in refusal(path)
    path.write_text('id\ttext\ttitle\n1\ta\tA\n2\t"b\tB\n3\t"c"\tC\n', "utf-8")
    assert f"{path}:3: a field opens" in refusal(path)


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_truncated_gz(tmp_path, kept):
    rows = [{"id": str(i), "title": f"t{i}", "text": f"text {i * 7919}"} for i in range(500)]
    path = write_table(tmp_path / "c.tsv.gz", rows)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    message = refusal(path)
    assert "is cut short or damaged" in message
    assert int(message.split(":")[1]) > 1


def test_no_passages_no_file_no_such_ending(tmp_path):
    (tmp_path / "c.jsonl").write_text("\n")
    assert "holds no passages" in refusal(tmp_path / "c.jsonl")
    assert "no such file" in refusal(tmp_path / "none.tsv")
    (tmp_path / "c.csv").write_text("id,text,title\n")
    assert "a corpus ends in .tsv, .tsv.gz, .jsonl, .jsonl.gz" in refusal(tmp_path / "c.csv")


def test_line_numbers_count_the_lines_of_the_file(tmp_path):
    path = write_table(tmp_path / "c.tsv", PASSAGES)
    assert [line for line, *_ in read_corpus(path)] == [2, 3, 4, 5]


EIFFEL = "The Eiffel Tower was completed in Paris in 1889."


def test_contents_of_one_line_are_a_text(write_jsonl):
    path = write_jsonl("c.jsonl", [{"id": "0", "contents": EIFFEL}, {"id": "1", "contents": '""A" b"\nText."'}])
    assert list(open_store(path)) == [
        {"id": "0", "title": "", "text": EIFFEL},
        {"id": "1", "title": '"A" b', "text": 'Text."'},
    ]


def test_contents_without_titles_have_a_store_of_their_own(write_jsonl, tmp_path):
    path = write_jsonl("c.jsonl", [{"id": "0", "contents": "First line,\nand second."}])
    with_titles, without = open_store(path)[0], open_store(path, no_title=True)[0]
    assert with_titles == {"id": "0", "title": "First line,", "text": "and second."}
    assert without == {"id": "0", "title": "", "text": "First line,\nand second."}
    plain = write_jsonl("p.jsonl", PASSAGES)  # titles of their own: one store for both
    made = (open_store(plain).folder / "meta.json").stat().st_mtime_ns
    assert (open_store(plain, no_title=True).folder / "meta.json").stat().st_mtime_ns == made


def test_null_titles_other_names_and_unknown_fields(write_jsonl):
    rows = [
        {"_id": "MED-1", "title": None, "text": "x", "metadata": {"url": "u"}},
        {"id": 7, "text": "y", "year": 1889, "tags": ["é"]},
    ]
    store = open_store(write_jsonl("c.jsonl", rows))
    assert list(store) == [
        {"id": "MED-1", "title": "", "text": "x", "metadata": {"url": "u"}},
        {"id": "7", "title": "", "text": "y", "year": 1889, "tags": ["é"]},
    ]
    assert store[store.positions(["MED-1"])[0]]["metadata"] == {"url": "u"}


def test_passages_without_text_are_known(write_jsonl, caplog):
    store = open_store(write_jsonl("c.jsonl", [*PASSAGES, {"id": "e", "title": "T", "text": " \n"}]))
    assert store.empty.tolist() == [2, 4]
    assert "2 passages have no text: they are neither embedded nor retrieved" in caplog.text


def test_a_store_that_cannot_be_written_names_the_flag(write_jsonl, tmp_path):
    path = write_jsonl("c.jsonl", PASSAGES)
    (tmp_path / "shared").write_text("a file, no folder")
    with pytest.raises(UserError, match=r"c.jsonl.store: cannot be written .*; --passages_store FOLDER puts"):
        open_store(path, tmp_path / "shared")
