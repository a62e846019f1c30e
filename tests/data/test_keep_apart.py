"""No script of data/ writes over what it reads."""

from conftest import REPOSITORY, each


@each(
    "command",
    [
        ["data_filter.py", "--data_path", "DATA", "--output_path", "DATA"],
        ["data2selector.py", "--data_path", "DATA", "--output_path", "DATA"],
        ["prepare_sample.py", "--data_path", "DATA", "--output_path", "DATA"],
        ["split_questions.py", "--data_path", "DATA", "--output_dir", "FOLDER"],
        ["prepare_questions.py", "--data_path", "DATA", "--output_path", "DATA"],
        ["prepare_corpus.py", "--data_path", "DATA", "--output_path", "DATA"],
    ],
)
def test_an_output_that_would_replace_its_input_is_refused(command, write_jsonl, run_python):
    data = write_jsonl("train.jsonl", [{"id": "q", "question": "Where?", "answers": ["here"]}])
    former = data.read_bytes()
    script, *flags = command
    places = {"DATA": data, "FOLDER": data.parent}
    done = run_python(REPOSITORY / "data" / script, *(places.get(flag, flag) for flag in flags))
    assert done.returncode == 2 and "would replace its own input" in done.stderr
    assert data.read_bytes() == former
