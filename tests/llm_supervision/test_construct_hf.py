"""construct_hf end to end on a tiny LLM: fields, values, bad input before any model, and other settings."""

import contextlib
import json
import shutil
import sys

import pytest
import torch
from conftest import SENTENCES, causal_tokenizer, each
from transformers import AutoModelForCausalLM

from gainRAG.common.cli import UserError
from gainRAG.common.resume import StageOutput
from gainRAG.evaluation.answers import cover_exact_match, f1_score
from gainRAG.llm_inference.background import pseudo_passage
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.llm_inference.engine import EngineOptions
from gainRAG.llm_inference.inference_hf import HFEngine
from gainRAG.llm_supervision import construct_hf
from gainRAG.prompts import Prompts

FIELDS = {"id", "title", "text", "has_answer", "retrieval_score", "is_pseudo"}
FIELDS |= {"prediction", "EM_with_retrieval", "F1_with_retrieval", "PPL_CD", "retrieved_ppl"}


def made_questions(count: int = 5) -> list[dict]:
    questions = []
    for number in range(count):
        texts = [SENTENCES[(number + rank) % 8] for rank in range(2 + number % 3)]
        ctxs = [
            {"id": f"{number}-{rank}", "title": f"T{rank}", "text": text, "score": -1.0 * rank, "hasanswer": rank == 1}
            for rank, text in enumerate(texts)
        ]
        answers = ["Paris", "the Nile", "Paris"][: 1 + number % 3]
        question = {"id": number, "question": f"Which, {number}?", "answers": answers, "level": "x"}
        questions.append({**question, "ctxs": ctxs})
    return questions


@pytest.fixture
def retrieved(write_jsonl):
    return write_jsonl("retrieved.jsonl", made_questions())


@pytest.fixture
def flags(tiny_llama):
    fixed = ["--task", "HotpotQA", "--lm_type", tiny_llama, "--device", "cpu", "--background_tokens", 8]
    return [*map(str, fixed), "--max_new_tokens", "6"]


@pytest.fixture
def construct(monkeypatch, flags, tmp_path):
    """Runs the stage in this process and gives the output's path."""

    def run(data_path, *more, output="gains.jsonl"):
        path = tmp_path / output
        arguments = ["--data_path", data_path, "--output_path", path, *flags, *more]
        monkeypatch.setattr(sys, "argv", ["construct_hf", *map(str, arguments)])
        construct_hf.main()
        return path

    return run


@torch.no_grad()
def defined_gain(model, tokenizer, question_prompt, passage_prompt, answers, alpha):
    """(PPL_CD, retrieved_ppl) as the paper writes them: all logits of a forward an answer and context."""
    found = []
    for answer in answers:
        answer_ids = tokenizer(answer, add_special_tokens=False).input_ids
        logits = []
        for prompt in (passage_prompt, question_prompt):
            ids = tokenizer(prompt, add_special_tokens=False).input_ids + answer_ids
            logits.append(model(torch.tensor([ids])).logits[0, -len(answer_ids) - 1 : -1].double())
        contrast = (1 + alpha) * logits[0] - alpha * logits[1]
        values = [z.log_softmax(-1)[range(len(answer_ids)), answer_ids].mean() for z in (contrast, logits[0])]
        found.append([torch.exp(-value).item() for value in values])
    return [min(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("alpha", [0.5, 0.0])
def test_every_field_is_what_its_definition_says(construct, retrieved, read_jsonl, tiny_llama, alpha):
    path = construct(retrieved, "--alpha", alpha)
    rows = read_jsonl(path)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    tokenizer = causal_tokenizer()
    engine = HFEngine(EngineOptions(str(tiny_llama), device="cpu", dtype="float32"))
    builder = PromptBuilder(Prompts(), Prompts().task("HotpotQA"), tokenizer)
    assert len(rows) == 5
    assert any(passage["is_pseudo"] for row in rows for passage in row["passages"])
    for row, question in zip(rows, made_questions(), strict=True):
        assert {name: row[name] for name in ("id", "question", "answers", "level")} == {
            name: question[name] for name in ("id", "question", "answers", "level")
        }
        assert "ctxs" not in row
        written = pseudo_passage(engine.generate([builder.background(question)], 8)[0])
        candidates = question["ctxs"] + ([{**written, "hasanswer": False}] if written else [])
        for passage, former in zip(row["passages"], candidates, strict=True):
            names = ("id", "title", "text", "has_answer", "retrieval_score", "is_pseudo")
            assert [passage[name] for name in names] == [
                *(former[name] for name in ("id", "title", "text", "hasanswer", "score")),
                former.get("is_pseudo", False),
            ]
        for passage in row["passages"]:
            assert passage.keys() == FIELDS
            prompt = builder.with_passages(question, [passage])
            assert passage["prediction"] == engine.generate([prompt], 6)[0]
            assert passage["EM_with_retrieval"] == float(cover_exact_match(passage["prediction"], question["answers"]))
            assert passage["F1_with_retrieval"] == f1_score(passage["prediction"], question["answers"])
            bare = builder.without_passage(question)
            expected = defined_gain(model, tokenizer, bare, prompt, question["answers"], alpha)
            assert [passage["PPL_CD"], passage["retrieved_ppl"]] == pytest.approx(expected, rel=1e-4)
    assert sorted(file.name for file in path.parent.glob("gains*")) == ["gains.jsonl", "gains.jsonl.settings.json"]


def test_candidates_predictions_and_questions_can_be_fewer(construct, retrieved, read_jsonl, caplog):
    fewer = ["--num_passages", 3, "--limit", 4, "--no_pseudo", "--predictions", "none"]
    with caplog.at_level("INFO"):
        rows = read_jsonl(construct(retrieved, *fewer))
    assert [len(row["passages"]) for row in rows] == [2, 3, 3, 2]
    assert rows[0]["passages"][0].keys() == FIELDS - {"prediction", "EM_with_retrieval", "F1_with_retrieval"}
    assert "2 of 4 questions have fewer than 3 passages (--num_passages)" in caplog.text


def test_fields_that_are_not_ours_pass_through(construct, write_jsonl, read_jsonl):
    record = {**made_questions(1)[0], "choices": {"label": ["A"], "text": ["x"]}, "metadata": {"deep": [1]}}
    record["ctxs"][0] |= {"url": "http://a", "title": None, "PPL_CD": 1e9}
    flags = ["--no_pseudo", "--predictions", "none"]
    [row] = read_jsonl(construct(write_jsonl("retrieved.jsonl", [record]), *flags))
    assert (row["choices"], row["metadata"]) == (record["choices"], record["metadata"])
    first, second = row["passages"]
    assert (first["url"], first["title"], "url" in second) == ("http://a", "", False)
    assert first["PPL_CD"] < 1e9


@pytest.mark.parametrize(("rule", "hit"), [({}, False), ({"answer_match": "characters"}, True)])
def test_answers_are_looked_for_by_the_rule_that_retrieval_noted(construct, write_jsonl, read_jsonl, rule, hit):
    record = {"id": 0, "question": "Which?", "answers": ["北京"], "ctxs": [{"title": "", "text": "北京是中国的首都。"}]}
    texts = write_jsonl("texts.jsonl", [{"id": 0, "question": "Which?", "background": "首都是北京。"}])
    flags = ["--predictions", "none", "--background_path", texts]
    [row] = read_jsonl(construct(write_jsonl("retrieved.jsonl", [record | rule]), *flags))
    assert [passage["has_answer"] for passage in row["passages"]] == [hit, hit]


@pytest.fixture
def short_llm(tiny_llama, tmp_path):
    """A folder of an LLM with 160 positions."""
    folder = shutil.copytree(tiny_llama, tmp_path / "short")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.config.max_position_embeddings = 160
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"question": "Which of the two rivers? " * 40},
            "field 'question': question 3 .*: its prompt is .* tokens longer",
        ),
        ({"answers": ["a", "Paris, " * 60]}, "field 'answers': question 3 .*: 'Paris, .* has .* tokens, .* leave "),
    ],
)
def test_what_is_too_long_is_found_before_any_model_loads_and_may_be_left_out(
    construct, short_llm, write_jsonl, read_jsonl, monkeypatch, caplog, change, problem
):
    questions = made_questions()
    questions[3] |= change
    data, flags = write_jsonl("long.jsonl", questions), ["--lm_type", short_llm, "--background_tokens", 8]
    with monkeypatch.context() as patch, pytest.raises(UserError, match=rf"long\.jsonl:4: {problem}"):
        patch.setattr("gainRAG.llm_inference.inference_hf.load_causal_lm", lambda *_: pytest.fail("a model was loaded"))
        construct(data, *flags)
    rows = read_jsonl(construct(data, *flags, "--skip_too_long"))
    assert [row["id"] for row in rows] == [0, 1, 2, 4]
    assert all("PPL_CD" in passage for row in rows for passage in row["passages"])
    assert "1 questions are too long for the LLM and are left out" in caplog.text


def test_an_answer_longer_than_what_is_reserved_is_scored_where_its_prompts_leave_room(
    construct, write_jsonl, read_jsonl
):
    questions = made_questions(2)
    questions[1]["answers"] = ["Paris, " * 60]
    [_, row] = read_jsonl(construct(write_jsonl("long.jsonl", questions), "--predictions", "none"))
    assert all("PPL_CD" in passage for passage in row["passages"])


def test_texts_and_signal_have_a_number_format_each(construct, retrieved, monkeypatch):
    from gainRAG.llm_inference import inference_hf

    loaded, load = [], inference_hf.load_causal_lm
    monkeypatch.setattr(inference_hf, "load_causal_lm", lambda *given: loaded.append(given[2]) or load(*given))
    path = construct(retrieved)
    flags = stored_flags(path)
    assert (loaded, flags["dtype"], flags["gain_dtype"]) == (["float32", "float32"], "float32", "float32")
    loaded.clear()
    flags = stored_flags(construct(retrieved, "--dtype", "bfloat16", output="other.jsonl"))
    assert (loaded, flags["dtype"], flags["gain_dtype"]) == (["bfloat16", "float32"], "bfloat16", "float32")
    flags = stored_flags(construct(retrieved, "--gain_dtype", "bfloat16", output="third.jsonl"))
    assert (flags["dtype"], flags["gain_dtype"]) == ("float32", "bfloat16")


def stored_flags(path) -> dict:
    return json.loads(path.with_name(path.name + ".settings.json").read_text())["flags"]


def test_backgrounds_may_come_from_a_file(construct, retrieved, write_jsonl, read_jsonl, caplog, monkeypatch):
    texts = ["The Nile. Paris.", "N/A", " x ", "Paris", "n/a."]
    rows = [
        {"id": q["id"], "question": q["question"], "background": text}
        for q, text in zip(made_questions(), texts, strict=True)
    ]
    monkeypatch.setattr(construct_hf, "CHUNK", 2)
    with caplog.at_level("INFO"):
        flags = ["--background_path", write_jsonl("backgrounds.jsonl", rows), "--num_passages", 3]
        found = read_jsonl(construct(retrieved, *flags, "--predictions", "none"))
    assert "2 of 5 questions have fewer than 3 passages" in caplog.text
    pseudo = [[(p["text"], p["has_answer"]) for p in row["passages"] if p["is_pseudo"]] for row in found]
    assert pseudo == [[("The Nile. Paris.", True)], [], [("x", False)], [("Paris", True)], []]
    kept = read_jsonl(construct(retrieved, *flags, "--keep_na", "--predictions", "none", "--overwrite"))
    pseudo = [[p["text"] for p in row["passages"] if p["is_pseudo"]] for row in kept]
    assert pseudo == [["The Nile. Paris."], ["N/A"], ["x"], ["Paris"], ["n/a."]]
    assert all("PPL_CD" in row["passages"][-1] for row in kept)


@pytest.fixture
def no_model(monkeypatch):
    from gainRAG.llm_inference import engine, inference_hf

    monkeypatch.setattr(inference_hf, "load_causal_lm", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(engine, "load_engine", lambda *_: pytest.fail("an engine was loaded"))


@each(
    ("change", "problem"),
    [
        ({"answers": []}, "field 'answers'"),
        ({"answers": ["Paris", ""]}, "field 'answers': '' is not a gold answer"),
        ({"question": None}, "field 'question'"),
        ({"ctxs": None}, "field 'ctxs': wanted a list"),
        ({"ctxs": [{"title": "t"}]}, r"field 'ctxs\[0\]'"),
    ],
)
def test_a_bad_record_ends_the_run_before_any_model_loads(construct, no_model, write_jsonl, tmp_path, change, problem):
    questions = made_questions()
    questions[3].update(change)
    with pytest.raises(UserError, match=rf"bad\.jsonl:4: {problem}"):
        construct(write_jsonl("bad.jsonl", questions))
    assert not list(tmp_path.glob("gains*"))


def test_other_mistakes_end_the_run_before_any_model_loads(construct, no_model, retrieved, write_jsonl, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        construct("gone.jsonl")
    with pytest.raises(UserError, match="--task HotPot: unknown"):
        construct(retrieved, "--task", "HotPot")
    with pytest.raises(UserError, match="neither a model folder"):
        construct(retrieved, "--lm_type", "nothing")
    rows = [{"id": 0, "question": "Which, 0?", "background": "x"}]
    with pytest.raises(UserError, match="backgrounds.jsonl: no pseudo-passage for id 1"):
        construct(retrieved, "--background_path", write_jsonl("backgrounds.jsonl", rows))
    for flag, value in [("--alpha", "-1"), ("--alpha", "nan"), ("--num_passages", "0"), ("--backend", "x")]:
        with pytest.raises(SystemExit) as refused:
            construct(retrieved, flag, value)
        assert refused.value.code == 2
    assert not list(tmp_path.glob("gains*"))


def test_an_empty_answer_gives_exit_code_2_and_one_line(run_python, write_jsonl, flags, tmp_path):
    questions = made_questions()
    questions[1]["answers"] = [" "]
    path = write_jsonl("bad.jsonl", questions)
    output = ["--data_path", path, "--output_path", tmp_path / "gains.jsonl"]
    done = run_python("-m", "llm_supervision.construct_hf", *output, *flags, folder="gainRAG")
    assert done.returncode == 2
    assert done.stderr == f"error: {path}:2: field 'answers': ' ' is not a gold answer; wanted text that is not empty\n"


@pytest.fixture
def no_writing(monkeypatch):
    @contextlib.contextmanager
    def run():
        with monkeypatch.context() as patch:
            patch.setattr(HFEngine, "generate", lambda *_, **__: pytest.fail("the LLM wrote again"))
            yield

    return run


@pytest.fixture
def stop(construct, monkeypatch):
    """Runs the stage until it has gains, and stops it."""
    append = StageOutput.append

    def stops(self, records):
        for record in records:
            if "PPL_CD" in record["passages"][0] and record["id"] == 3:
                raise KeyboardInterrupt
            append(self, [record])

    def run(*arguments):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(StageOutput, "append", stops)
            construct(*arguments)

    return run


@pytest.mark.parametrize("server", [[], ["--backend", "openai", "--base_url", "http://a/v1", "--server_model", "x"]])
def test_an_unfinished_output_of_other_weights_is_refused(construct, stop, retrieved, tiny_llama, tmp_path, server):
    """Also where a server would write the texts: the gains come from the weights here."""
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    run = [retrieved, "--lm_type", folder, "--no_pseudo", "--predictions", "none", *server]
    stop(*run)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.norm.weight.data[0] *= 1.01
    model.save_pretrained(folder)
    with pytest.raises(UserError, match=r"gains.jsonl has an unfinished run.*weights: '\w+' then, '\w+' now"):
        construct(*run)
    shutil.copytree(tiny_llama, folder, dirs_exist_ok=True)
    whole = construct(*run, output="whole.jsonl")
    assert construct(*run).read_bytes() == whole.read_bytes()


def test_an_unfinished_output_with_other_settings_is_refused(construct, stop, retrieved, tmp_path):
    stop(retrieved)
    with pytest.raises(UserError, match=r"gains.jsonl has an unfinished run.*alpha: 0\.5 then, 0\.7 now"):
        construct(retrieved, "--alpha", 0.7)
    whole = construct(retrieved, "--alpha", 0.7, output="whole.jsonl")
    overwritten = construct(retrieved, "--alpha", 0.7, "--overwrite")
    assert overwritten.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*generated*"))


def test_overwrite_starts_afresh_once(construct, stop, retrieved, no_writing):
    """Killed while it scores and given again with --overwrite, the run resumes: nothing is written a second time."""
    stop(retrieved, "--overwrite")
    with no_writing():
        resumed = construct(retrieved, "--overwrite")
    assert resumed.read_bytes() == construct(retrieved, output="whole.jsonl").read_bytes()


def test_what_was_generated_is_removed_even_after_a_death_at_the_end(construct, retrieved, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(construct_hf, "remove_output", lambda path: None)
        construct(retrieved)
    assert (tmp_path / "gains.generated.jsonl").exists()
    construct(retrieved)
    assert not list(tmp_path.glob("*generated*"))
