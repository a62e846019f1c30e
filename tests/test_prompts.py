"""The texts shown to an LLM, and their replacement by a YAML file."""

import string

import pytest
from conftest import each

from gainRAG.common.cli import UserError
from gainRAG.prompts import PLACEHOLDERS, TASKS, Prompts, load_prompts, question_text

PASSAGE = {"id": 1, "title": "Seine", "text": "A river."}


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "prompts.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_the_built_in_texts_use_only_known_placeholders():
    for name, allowed in PLACEHOLDERS.items():
        found = {field for _, field, _, _ in string.Formatter().parse(getattr(Prompts(), name)) if field is not None}
        assert found <= allowed
    paper = {"HotpotQA", "2WikiMultiHopQA", "WebQuestions", "NaturalQA", "TriviaQA", "SQuAD"}
    assert TASKS.keys() == paper | {"ARC_Challenge", "PubHealth"}
    assert {TASKS[name].metric for name in paper} == {"answers"}
    assert TASKS["ARC_Challenge"].metric == TASKS["PubHealth"].metric == "accuracy"


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(UserError, match="--task HotPotQA: unknown; wanted one of HotpotQA, .*PubHealth"):
        Prompts().task("HotPotQA")


def test_evidence_of_one_and_of_several_passages():
    untitled = {"text": "It is long."}
    assert Prompts().evidence([PASSAGE]) == "Seine\nA river."
    assert Prompts().evidence([untitled]) == "It is long."
    assert Prompts().evidence([PASSAGE, {**untitled, "title": None}]) == "[1] Seine\nA river.\n\n[2] \nIt is long."


def test_braces_in_data_are_harmless():
    hostile = "{question} {0} {evidence.__class__} {} }{"
    assert Prompts().evidence([{"title": hostile, "text": hostile}]) == f"{hostile}\n{hostile}"


def test_yaml_replaces_texts_and_tasks(yaml_file):
    path = yaml_file(
        "passage: 'Title: {title}; {text} {{sic}}'\n"
        "tasks:\n"
        "  Quiz: {instruction: Guess., label: Riddle}\n"
        "  HotpotQA: {instruction: Say it.}\n"
    )
    prompts = load_prompts(path)
    assert prompts.evidence([PASSAGE]) == "Title: Seine; A river. {sic}"
    assert prompts.task("Quiz").label == "Riddle"
    assert prompts.task("HotpotQA").instruction == "Say it."
    assert prompts.task("HotpotQA").label == "Question"
    assert prompts.task("NaturalQA") == TASKS["NaturalQA"]
    assert prompts.with_passages == Prompts().with_passages


def test_the_reference_prompts_have_the_published_structure():
    prompts = load_prompts("reference")
    fields = {"instruction": "Reply briefly.", "label": "Question", "question": "Where is it?"}
    without = prompts.without_passage.format(**fields)
    one = prompts.with_passages.format(**fields, evidence=prompts.evidence([PASSAGE]))
    assert one == f"Passage #1\nSeine\nA river.\n\n{without}"
    assert without == "### Task\nReply briefly.\n\n### Question\nWhere is it?"
    assert prompts.evidence([PASSAGE] * 2) == "Passage #1\nSeine\nA river.\n\nPassage #2\nSeine\nA river."
    assert "do not know" in prompts.system and "nothing else" in prompts.background
    assert "unsure, write N/A.\n\nQuestion: Who?" in prompts.background.format(question="Who?")
    assert prompts.tasks == TASKS
    assert prompts.hash() != Prompts().hash()


def test_the_hash_tells_every_change(yaml_file):
    changes = [
        "passage: 'T: {text}'",
        "passage: 'T; {text}'",
        "background: '{question}?'",
        "base_model_cue: ' A: '",
        "system: Be brief.",
        "tasks: {Quiz: {instruction: Guess.}}",
        "tasks: {HotpotQA: {instruction: Guess.}}",
        "tasks: {HotpotQA: {instruction: Guess., metric: accuracy}}",
    ]
    hashes = {load_prompts(yaml_file(change)).hash() for change in changes}
    assert len(hashes | {Prompts().hash()}) == len(changes) + 1
    assert load_prompts().hash() == load_prompts(yaml_file("tasks: {}")).hash()


@each(
    ("text", "problem"),
    [
        ("passages: '{text}'", "unknown key 'passages', wanted one of with_passages.*tasks"),
        ("passage: '{text} {question}'", "'passage' has placeholders.*allowed: {number}, {text}, {title}"),
        ("with_passages: '{question}'", "'with_passages' has.*needed: {evidence}, {question}"),
        ("background: Write.", "'background'.*needed: {question}"),
        ('base_model_cue: "A:\\n"', "'base_model_cue' ends in a line break"),
        ("base_model_cue: '{question}'", "'base_model_cue'.*allowed: none"),
        ("passage: '{text} {}'", "'passage' has placeholders"),
        ("passage: '{text.__class__}'", "'passage' has placeholders"),
        ("passage: '{text} {'", "'passage' is no text with.*write a literal brace twice"),
        ("passage: '{text:{wide}}'", "'passage' is no text with"),
        ("passage: '{text:d}'", "'passage' is no text with"),
        ("system: '{question}'", "'system'.*allowed: none"),
        ("passage: 7", "'passage' is no text"),
        ("passage:", "'passage' is no text"),
        ("5: x", "unknown key '5'"),
        ("tasks: [a]", "'tasks' maps a name"),
        ("tasks:", "'tasks' maps a name"),
        ("tasks: {Quiz: Guess.}", "'tasks' maps a name"),
        ("tasks: {Quiz: {label: Riddle}}", "'tasks' maps a name to instruction"),
        ("tasks: {Quiz: {instruction: Guess., label: [1]}}", "'tasks' maps a name"),
        ("tasks: {Quiz: {instruction: Guess., metric: bleu}}", "tasks.Quiz.metric is 'bleu', wanted answers or"),
        ("", "wanted a mapping with keys among"),
        ("just text", "wanted a mapping"),
        ("a: [1", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        (b"passage: \xff", "is not YAML"),
    ],
)
def test_mistakes_in_the_yaml_are_named(yaml_file, text, problem):
    with pytest.raises(UserError, match=f"prompts.yaml: .*{problem}") as refused:
        load_prompts(yaml_file(text))
    assert "\n" not in str(refused.value)


def test_a_wrong_path_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_prompts(tmp_path / "gone.yaml")


def test_options_are_shown_a_line_each():
    record = {"question": "Which?", "choices": {"label": ["A", "B"], "text": ["sun", "{moon}"]}}
    assert question_text(record) == "Which?\nA: sun\nB: {moon}"
    assert question_text({"question": "Which?", "choices": None}) == "Which?"
