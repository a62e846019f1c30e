"""From supervision records to training groups: the stored filter, the conversion, and fixed samples."""

import importlib.util
import json
import math
import sys

import pytest
from conftest import REPOSITORY, each

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import read_records
from gainRAG.common.schemas import as_training_group


@pytest.fixture
def run_tool(monkeypatch, tmp_path):
    """Runs a script of data/ in this process and gives its output's path."""

    def run(name, *arguments, output="out.jsonl"):
        spec = importlib.util.spec_from_file_location(name, REPOSITORY / "data" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        path = tmp_path / output
        monkeypatch.setattr(sys, "argv", [name, *map(str, [*arguments, "--output_path", path])])
        module.main()
        return path

    return run


def made_record(number: int, *perplexities: float, right: float | None = 1.0, pseudo: bool = False) -> dict:
    passages = [
        {
            "id": rank,
            "title": f"T{rank}" if rank else "",
            "text": f"text {rank}",
            "PPL_CD": ppl,
            "retrieved_ppl": abs(50 - ppl),
            "is_pseudo": pseudo and rank == len(perplexities) - 1,
        }
        for rank, ppl in enumerate(perplexities)
    ]
    if right is not None:
        for passage in passages:
            passage["EM_with_retrieval"] = right
    return {"id": number, "question": f"Where, {number}?", "answers": ["Paris"], "passages": passages}


def test_groups_hold_what_the_trainer_reads(run_tool, write_jsonl):
    path = run_tool("data2selector", "--data_path", write_jsonl("kept.jsonl", [made_record(7, 4, 1, 9)]))
    [group] = read_records(path, as_training_group)
    assert group == {
        "id": 7,
        "query": "Where, 7?",
        "pos": ["T1\ntext 1"],
        "neg": ["text 0", "T2\ntext 2"],
        "pos_scores": [pytest.approx(-math.log(2))],
        "neg_scores": pytest.approx([-math.log(5), -math.log(10)]),
    }


def test_the_plain_signal_orders_by_itself(run_tool, write_jsonl, read_jsonl):
    data = write_jsonl("kept.jsonl", [made_record(7, 4, 1, 9)])
    [group] = read_jsonl(run_tool("data2selector", "--data_path", data, "--signal", "retrieved_ppl"))
    assert group["pos"] == ["T2\ntext 2"]
    assert group["pos_scores"] == [pytest.approx(-math.log(42))]


def test_outliers_and_pseudo_passages_may_be_left_out(run_tool, write_jsonl, read_jsonl, caplog):
    records = [made_record(0, 4, 2e4, 1, pseudo=True), made_record(1, 4, 1, 2), made_record(2, 3, 3e4)]
    with caplog.at_level("INFO"):
        rows = read_jsonl(run_tool("data2selector", "--data_path", write_jsonl("k.jsonl", records), "--max_ppl", 1e4))
    assert [(row["id"], row["pos"], len(row["neg"])) for row in rows] == [
        (0, ["T2\ntext 2"], 1),
        (1, ["T1\ntext 1"], 2),
    ]
    said = "2 passages with PPL_CD above 10000, 1 questions with fewer than two candidates"
    assert f"left out: {said}" in caplog.text
    rows = read_jsonl(run_tool("data2selector", "--data_path", write_jsonl("k.jsonl", records), "--no_pseudo"))
    assert [(row["id"], row["pos"], len(row["neg"])) for row in rows] == [
        (0, ["text 0"], 1),
        (1, ["T1\ntext 1"], 2),
        (2, ["text 0"], 1),
    ]
    data = write_jsonl("none.jsonl", [made_record(0, 1, 2, pseudo=True), made_record(1, 3)])
    said = "1 pseudo-passages, 2 questions with fewer than two candidates"
    with pytest.raises(UserError, match=f"^{data}: no training group is left; left out: {said}$"):
        run_tool("data2selector", "--data_path", data, "--no_pseudo", output="none.json")
    assert not (data.parent / "none.json").exists()


def test_samples_are_drawn_over_all_files_and_by_the_seed(run_tool, write_jsonl, read_jsonl):
    files = [write_jsonl(f"{start}.jsonl", [made_record(start + n, 1, 2) for n in range(10)]) for start in (0, 10)]

    def drawn(*flags):
        return [row["id"] for row in read_jsonl(run_tool("data2selector", "--data_path", *files, *flags))]

    assert drawn() == list(range(20))
    sample = drawn("--sample", 8)
    assert sample == drawn("--sample", 8) == sorted(sample)
    assert len(sample) == 8
    assert sample != drawn("--sample", 8, "--seed", 1)
    assert min(sample) < 10 <= max(sample)
    assert drawn("--sample", 99) == list(range(20))


def test_what_would_count_twice_is_refused(run_tool, write_jsonl, read_jsonl, tmp_path):
    first = write_jsonl("a.jsonl", [made_record(n, 1, 2) for n in range(3)])
    second = write_jsonl("b.jsonl", [made_record(3, 1, 2), made_record(2, 1, 2)])
    (tmp_path / "link.jsonl").symlink_to(first)
    for path in (first, tmp_path / "link.jsonl"):
        with pytest.raises(UserError, match=f"^{path}: the same file as {first}, both in --data_path"):
            run_tool("data2selector", "--data_path", first, path)
    with pytest.raises(UserError, match=f"^{second}:2: field 'id': 2 stands in {first} too, with the same question"):
        run_tool("data2selector", "--data_path", first, second)
    assert not (tmp_path / "out.jsonl").exists()
    other = write_jsonl("c.jsonl", [{**made_record(2, 1, 2), "question": "When?"}])  # ids may start anew in each set
    assert len(read_jsonl(run_tool("data2selector", "--data_path", first, other))) == 4


def test_the_filter_reads_stored_predictions(run_tool, write_jsonl, caplog):
    records = [made_record(0, 1, 2), made_record(1, 1, 2, right=0.0), made_record(2, 5, 4, pseudo=True)]
    records[0]["level"] = "kept as it is"
    with caplog.at_level("INFO"):
        path = run_tool("data_filter", "--data_path", write_jsonl("gains.jsonl", records), output="kept.json")
    assert json.loads(path.read_text()) == [records[0], records[2]]
    assert "kept 2 of 3 questions" in caplog.text
    assert "1 answered wrongly, best passage lacks the answer" in caplog.text


@each(
    ("tool", "change", "problem"),
    [
        ("data_filter", {"EM_with_retrieval": None}, r"field 'passages\[0\].EM_with_retrieval': missing; llm_superv"),
        ("data_filter", {"PPL_CD": None}, r"field 'passages\[0\].PPL_CD': None is not a finite number"),
        ("data2selector", {"PPL_CD": float("nan")}, r"field 'passages\[0\].PPL_CD': nan"),
        ("data2selector", {"PPL_CD": -1.5}, r"field 'passages\[0\].PPL_CD': -1.5 is below 0"),
        ("data2selector", {"text": None}, r"field 'passages\[0\]': wanted an object with 'text'"),
    ],
)
def test_bad_passages_are_named_by_file_line_and_field(run_tool, write_jsonl, tool, change, problem):
    bad = made_record(1, 1, 2)
    bad["passages"][0].update(change)
    data = write_jsonl("bad.jsonl", [made_record(0, 1, 2), bad])
    with pytest.raises(UserError, match=rf"bad\.jsonl:2: {problem}"):
        run_tool(tool, "--data_path", data)
    assert [file.name for file in data.parent.glob("*.json*")] == ["bad.jsonl"]


@pytest.mark.parametrize("tool", ["data_filter", "data2selector"])
def test_a_missing_signal_is_named(run_tool, write_jsonl, tool):
    record = made_record(1, 1, 2)
    del record["passages"][1]["retrieved_ppl"]
    with pytest.raises(UserError, match=r":1: field 'passages\[1\].retrieved_ppl': missing; llm_supervision"):
        run_tool(tool, "--data_path", write_jsonl("a.jsonl", [record]), "--signal", "retrieved_ppl")


def test_no_model_library_is_imported(run_python):
    script = "import sys, data2selector, data_filter; print('torch' in sys.modules)"
    assert run_python("-c", script, folder="data").stdout == "False\n"


@each("flags", [["--max_ppl", "0"], ["--max_ppl", "nan"], ["--sample", "0"], ["--signal", "ppl"]])
def test_flags_that_cannot_be_are_refused(run_tool, write_jsonl, flags):
    with pytest.raises(SystemExit) as refused:
        run_tool("data2selector", "--data_path", write_jsonl("a.jsonl", [made_record(0, 1, 2)]), *flags)
    assert refused.value.code == 2


# --- prepare_sample ---------------------------------------------------------------------------------------------


def retrieved(count: int) -> list[dict]:
    """Question n has its answer in passage n % 5 of 4: in none for every fifth."""

    def passages(right):
        return [{"id": n, "text": "an x" if n == right else "y", "hasanswer": n == right} for n in range(4)]

    return [
        {"id": n, "question": f"q{n}?", "answers": ["x"] * (1 + n % 3), "ctxs": passages(n % 5)} for n in range(count)
    ]


def test_a_sample_meets_its_conditions(run_tool, write_jsonl, read_jsonl, caplog, tmp_path):
    data = write_jsonl("retrieved.jsonl", retrieved(30))
    (tmp_path / "held.json").write_text(json.dumps({"held_out": [f"q{n}?" for n in range(20)]}))
    flags = ["--only_questions", tmp_path / "held.json", "held_out", "--answerable_in_top", 2, "--max_answers", 2]
    with caplog.at_level("INFO"):
        rows = read_jsonl(run_tool("prepare_sample", "--data_path", data, *flags))
    assert [row["id"] for row in rows] == [n for n in range(20) if n % 5 < 2 and n % 3 < 2]
    assert all(len(row["ctxs"]) == 2 for row in rows)
    assert "10 not in --only_questions" in caplog.text
    assert "6 more than 2 gold answers" in caplog.text
    assert "no gold answer in the first 2 passages" in caplog.text


def test_missing_hasanswer_is_looked_up(run_tool, write_jsonl):
    rows = retrieved(10)
    flags = ["--answerable_in_top", 2, "--data_path"]
    whole = run_tool("prepare_sample", *flags, write_jsonl("a.jsonl", rows)).read_text()
    for row in rows:
        for passage in row["ctxs"]:
            del passage["hasanswer"]
    bare = run_tool("prepare_sample", *flags, write_jsonl("b.jsonl", rows)).read_text()
    ids = [[json.loads(line)["id"] for line in text.splitlines()] for text in (whole, bare)]
    assert ids[0] == ids[1] == [0, 1, 5, 6]


def test_the_seed_decides_the_draw_and_the_order_stays(run_tool, write_jsonl, read_jsonl):
    data = write_jsonl("questions.jsonl", [{"id": n, "question": "q", "answers": ["x"]} for n in range(50)])

    def drawn(seed):
        rows = read_jsonl(run_tool("prepare_sample", "--data_path", data, "--sample", 10, "--seed", seed))
        return [row["id"] for row in rows]

    assert drawn(1) == drawn(1) == sorted(drawn(1))
    assert drawn(1) != drawn(2)
    assert len(drawn(1)) == 10


def test_a_sample_of_nothing_is_an_error(run_tool, write_jsonl, tmp_path):
    data = write_jsonl("retrieved.jsonl", retrieved(5)[4:])
    with pytest.raises(UserError, match=r"no question is left \(1 no gold answer in the first 4 passages\)"):
        run_tool("prepare_sample", "--data_path", data, "--answerable_in_top", 4)
    (tmp_path / "held.json").write_text('{"a": 1}')
    for key in ("a", "b"):
        with pytest.raises(UserError, match=f"wanted JSON with a list of questions under '{key}'"):
            run_tool("prepare_sample", "--data_path", data, "--only_questions", tmp_path / "held.json", key)
    assert not (tmp_path / "out.jsonl").exists()
