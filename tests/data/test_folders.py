"""Whole folders as data: FlashRAG's, BEIR's, and a user's own documents; and where documents are cut."""

import json
import os
import sys

import pytest
from conftest import REPOSITORY, each
from test_prepare_corpus import load_script

from gainRAG.common.cli import UserError
from gainRAG.retrieval_engine.documents import cut_near_ends, document_files

prepare_corpus, prepare_questions = map(load_script, ("prepare_corpus", "prepare_questions"))


@pytest.fixture
def folder(tmp_path):
    """Writes files (text, or records of a .jsonl) into a folder `set` and gives it."""

    def make(files: dict) -> object:
        for name, content in files.items():
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, list):
                content = "".join(json.dumps(record) + "\n" for record in content)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / "set").mkdir(exist_ok=True)
        return tmp_path / "set"

    return make


def passages(path, **options) -> list[dict]:
    return list(prepare_corpus.read_passages(path, prepare_corpus.Tally(), **options))


def ask(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare_questions.py", *map(str, arguments)])
    prepare_questions.main()


DOCUMENTS = {
    "b.txt": "One two.\nThree.",
    "a/guide.md": "Before.\n```\n# a comment\n```\n## The *guide* ##\nText of it.\n# Later\nEnd.",
    "a/plain.md": "No heading, #hash.",
    "a/chain.jsonl": [{"page_content": "Chained.", "metadata": {"source": "x/y.pdf"}}, {"page_content": "Bare."}],
    "c.jsonl": [{"id_": "n1", "text": "A node.", "metadata": {"file_name": "z.txt"}}],
    "d.jsonl": [{"id": 7, "title": "T", "text": "A passage."}],
    "empty.txt": " ",
    "empty.jsonl": "\n",
    ".git/x.txt": "hidden",
    "scan.pdf": "x",
    "old/scan.pdf": "x",
    "Makefile": "x",
}


def test_own_documents(folder, caplog):
    tally = prepare_corpus.Tally()
    found = list(prepare_corpus.read_passages(folder(DOCUMENTS), tally))
    assert [(p["id"], p["title"], p["text"]) for p in found] == [
        ("a/chain.jsonl:1#1", "y", "Chained."),
        ("a/chain.jsonl:2#1", "", "Bare."),
        ("a/guide.md#1", "The *guide*", "Before. ``` # a comment ``` Text of it. # Later End."),
        ("a/plain.md#1", "plain", "No heading, #hash."),
        ("b.txt#1", "b", "One two. Three."),
        ("n1#1", "z", "A node."),
        ("7", "T", "A passage."),
    ]
    assert (tally.texts, tally.empty) == (9, 2)
    assert "3 files of other kinds are left out: 2 .pdf, 1 Makefile" in caplog.text
    assert found == passages(folder({}))


@each(
    ("text", "title", "body"),
    [
        ("# About C#\nx", "About C#", "x"),
        ("# Closed ##  \nx", "Closed", "x"),
        ("#\n# ##\nx", "a", "# # ## x"),
        ("Underlined\r\n===\r\n\r\nx", "Underlined", "x"),
        ("====\nx", "a", "==== x"),
    ],
)
def test_the_title_of_markdown(tmp_path, text, title, body):
    (tmp_path / "a.md").write_bytes(text.encode())
    assert [(p["title"], p["text"]) for p in passages(tmp_path)] == [(title, body)]


def test_long_documents_are_cut_at_a_hundred_words_or_as_told(folder):
    path = folder({"long.txt": "One two three four five six seven eight nine. " * 30})
    found = passages(path)
    assert [(p["id"], len(p["text"].split())) for p in found] == [
        ("long.txt#1", 99),
        ("long.txt#2", 99),
        ("long.txt#3", 72),
    ]
    assert all(p["text"].endswith("nine.") for p in found)
    assert len(passages(path, words=0)) == 1 and len(passages(path, words=9)) == 30


@each(
    "text, words, blocks",
    [
        ("a b c d. e f g", 6, ["a b c d. e f", "g"]),  # the sentence ends too far from the block's end
        ("a b c d e. f g", 6, ["a b c d e.", "f g"]),
        ('a b c d e." f g', 6, ['a b c d e."', "f g"]),
        ("a b c d e\n\nf. g", 6, ["a b c d e", "f. g"]),  # a paragraph's end before a sentence's
        ("a b c d e f g", 3, ["a b c", "d e f", "g"]),
        ("a b\n\nc.", 3, ["a b c."]),
        ("a. b. c", 1, ["a.", "b.", "c"]),
        ("a. b.\n\n c", 0, ["a. b. c"]),
        (" \n\n", 5, []),
    ],
)
def test_cut_near_ends(text, words, blocks):
    assert cut_near_ends(text, words) == blocks


def test_corpus_of_beir_and_of_flashrag(folder):
    path = folder({"corpus.jsonl": [{"_id": "d1", "title": "T", "text": "x", "metadata": {}}], "queries.jsonl": [{}]})
    assert passages(path) == [{"id": "d1", "title": "T", "text": "x", "metadata": {}}]
    folder({"corpus.jsonl": [{"_id": "d1", "text": "x", "metadata": {}}, {"_id": "d2", "title": "T", "text": "y"}]})
    assert [(p["id"], p["title"]) for p in passages(path)] == [("d1", ""), ("d2", "T")]  # BEIR's titles are optional
    path = folder({"wiki.jsonl": [{"id": "0", "contents": "T\nx y"}]}) / "wiki.jsonl"
    assert passages(path) == [{"id": "0", "title": "T", "text": "x y"}]


def test_a_corpus_among_own_documents_hides_none_of_them(folder):
    path = folder({"a.txt": "x", "corpus.jsonl": [{"id": 1, "text": "y"}]})
    assert [(p["id"], p["text"]) for p in passages(path)] == [("a.txt#1", "x"), ("1", "y")]


def test_bad_document_folders(folder):
    with pytest.raises(UserError, match=r"set: holds no .txt, .md or .jsonl file \(found no file\)"):
        passages(folder({}))
    with pytest.raises(UserError, match=r"\(found .pdf\); save the documents as such"):
        passages(folder({"a.pdf": "x"}))
    with pytest.raises(UserError, match=r"bad.txt:2: is not UTF-8 text; save the file as UTF-8"):
        passages(folder({"bad.txt": b"a\n\xff"}))
    with pytest.raises(UserError, match=r"n\\udcff.txt: the file's name is not UTF-8, .* rename it"):
        passages(folder({"bad.txt": "a", os.fsdecode(b"n\xff.txt"): "x"}))
    (folder({}) / os.fsdecode(b"n\xff.txt")).unlink()
    with pytest.raises(UserError, match=r"bad.txt: is one document; give the folder that holds your documents"):
        passages(folder({"bad.txt": "a"}) / "bad.txt")
    path = folder({"bad.txt": "a", "test.jsonl": [{"id": "1", "question": "Q?", "golden_answers": ["a"]}]})
    with pytest.raises(
        UserError, match=r"test.jsonl: record 1: .* these are questions, which prepare_questions.py reads"
    ):
        passages(path)
    path = folder({"test.jsonl": [{"page_content": "x", "metadata": "m"}]})
    with pytest.raises(UserError, match=r"record 1: field 'metadata': 'm' is not an object"):
        passages(path)


def test_linked_folders_are_read_once_and_an_output_inside_is_refused(tmp_path, run_python):
    documents, elsewhere = tmp_path / "documents", tmp_path / "elsewhere"
    for place in (documents, elsewhere / "inner"):
        place.mkdir(parents=True)
        (place / "a.txt").write_text("Some words.")
    (documents / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(documents)  # a circle
    (documents / "B.JSONL").write_text("{}")
    read, others = document_files(documents)
    assert [str(path.relative_to(documents)) for path in read] == ["a.txt", "linked/inner/a.txt"]
    assert [path.name for path in others] == ["B.JSONL"]
    script = REPOSITORY / "data" / "prepare_corpus.py"
    done = run_python(script, "--data_path", documents, "--output_path", documents / "corpus.jsonl")
    assert done.returncode == 2 and "lies inside --data_path" in done.stderr


def test_questions_of_flashrag(folder, monkeypatch, tmp_path, read_jsonl):
    row = {"question": "Q?", "golden_answers": ["a"], "metadata": {"level": "easy"}}
    path = folder({f"{split}.jsonl": [{"id": f"{split}_0", **row}] for split in ("train", "test")})
    ask(monkeypatch, "--data_path", path, "--output_dir", tmp_path / "q")
    assert sorted(file.name for file in (tmp_path / "q").iterdir()) == ["set_test.jsonl", "set_train.jsonl"]
    expected = {"id": "test_0", "question": "Q?", "answers": ["a"], "metadata": {"level": "easy"}}
    assert read_jsonl(tmp_path / "q" / "set_test.jsonl") == [expected]


def test_questions_of_beir(folder, monkeypatch, tmp_path, read_jsonl):
    queries = [
        {"_id": "q1", "text": "Q1?", "metadata": {"answer": "a"}},
        {"_id": "q2", "text": "Q2?", "answers": ["b", "c"], "metadata": {}},
        {"_id": "q3", "text": "Q3?"},
    ]
    judged = "query-id\tcorpus-id\tscore\n{}\td1\t1\n{}\td2\t1\n"
    files = {"qrels/test.tsv": judged.format("q2", "q2"), "qrels/train.tsv": judged.format("q1", "q3")}
    path = folder({"queries.jsonl": queries, **files})
    with pytest.raises(UserError, match=r"queries.jsonl:3: no usable answer; .* few of its sets have gold answers"):
        ask(monkeypatch, "--data_path", path, "--output_dir", tmp_path / "q")
    ask(monkeypatch, "--data_path", path, "--output_dir", tmp_path / "q", "--dataset", "own", "--drop_unanswered")
    assert [q["answers"] for q in read_jsonl(tmp_path / "q" / "own_train.jsonl")] == [["a"]]
    assert [(q["id"], q["answers"]) for q in read_jsonl(tmp_path / "q" / "own_test.jsonl")] == [("q2", ["b", "c"])]


def test_bad_question_folders(folder, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"holds neither train.jsonl, .*FlashRAG.* nor queries.jsonl \(BEIR\)"):
        ask(monkeypatch, "--data_path", folder({"x.jsonl": []}))
    with pytest.raises(UserError, match="whose splits go into --output_dir, not --output_path"):
        ask(monkeypatch, "--data_path", folder({}), "--output_path", tmp_path / "q.jsonl")
    path = folder({"queries.jsonl": [{"_id": "1", "text": "Q?", "answer": "a"}], "qrels/dev.tsv": "1\td\t1\n"})
    with pytest.raises(UserError, match=r"dev.tsv:1: wanted the header query-id"):
        ask(monkeypatch, "--data_path", path, "--output_dir", tmp_path)
    folder({"qrels/dev.tsv": "query-id\tcorpus-id\tscore\n2\td\t1\n"})
    with pytest.raises(UserError, match=r"dev.tsv: names no question of"):
        ask(monkeypatch, "--data_path", path, "--output_dir", tmp_path)
    folder({"qrels/dev.tsv": ""})
    with pytest.raises(UserError, match=r"dev.tsv: is empty"):
        ask(monkeypatch, "--data_path", path, "--output_dir", tmp_path)
