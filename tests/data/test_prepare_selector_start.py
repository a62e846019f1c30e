"""data/prepare_selector_start.py: its groups, its measure, a small run, and an adapter that the stages can load."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest

from gainRAG.common.cli import UserError

REPOSITORY = Path(__file__).resolve().parents[2]


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "data" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


start = load_script("prepare_selector_start")
TEXT = "The Nile (Arabic: an-Nil) is a river. Egypt lies on the Nile. It is long."


def passage(number: int, hasanswer: bool = False) -> dict:
    text = f"Town {number} lies on the Nile. It has {number} gates."
    return {"id": str(number), "title": f"Town {number}", "text": text, "score": 1.0, "hasanswer": hasanswer}


def question(number: int, right: int = 2) -> dict:
    ctxs = [passage(n, hasanswer=n < right) for n in range(10)]
    random.Random(number).shuffle(ctxs)
    return {"id": str(number), "question": f"Which town, number {number}?", "answers": ["Town"], "ctxs": ctxs}


def test_cloze_hides_the_title_and_takes_the_sentence_out():
    drawn = [start.cloze({"title": "Nile (river)", "text": TEXT}, random.Random(seed)) for seed in range(20)]
    expected = {"The it (Arabic: an-Nil) is a river.", "Egypt lies on the it.", "It is long."}
    assert {query for query, _ in drawn} == expected
    query, (right,) = start.cloze({"title": "Nile (river)", "text": TEXT}, random.Random(0))
    assert right.startswith("Nile (river)\n") and query not in right and len(right) < len("Nile (river)\n" + TEXT)
    assert start.cloze({"title": "Nile", "text": "One sentence only."}, random.Random(0)) is None


def test_a_part_of_a_word_is_no_title():
    text = "Italian Ita. Ita is Ital."
    query, _ = start.cloze({"title": "Ita", "text": text}, random.Random(1))
    assert query in ("Italian it.", "it is Ital.")


def test_corpus_groups_hold_the_right_passage_first_and_only_neighbours():
    corpus = [passage(n) for n in range(6)]
    near = [[n for n in range(4) if n != own] for own in range(6)]
    near[5] = [0]  # too few
    groups = start.corpus_groups(corpus, near, 4, random.Random(0))
    assert len(groups) == 5
    for own, (_, passages) in enumerate(groups):
        assert passages[0].startswith(f"Town {own}\n") and len(passages) == len(set(passages)) == 4
        assert {int(text.split()[1]) for text in passages[1:]} <= set(near[own])


def test_question_groups():
    ((query, passages),) = start.question_groups([question(1)], 8, random.Random(0))
    towns = [int(text.split()[1]) for text in passages]
    assert query == "Which town, number 1?" and towns[0] < 2 and all(town >= 2 for town in towns[1:])
    assert len(set(towns)) == 8


def test_hit_rates():
    ranked = {"question": "q", "ctxs": [passage(0), passage(1), passage(2, True), passage(3)]}
    assert start.hit_rates([ranked], None) == {"hit@1": 0.0, "hit@3": 1.0}
    assert start.hit_rates([ranked], lambda pairs: ["Town 2\n" in text for _, text in pairs])["hit@1"] == 1.0


def test_unusable_questions_are_left_out(write_jsonl):
    path = write_jsonl("r.jsonl", [question(1), question(2, right=0), question(3, right=5)])
    assert [q["id"] for q in start.read_usable_questions(path, 8)] == ["1"]


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare_selector_start.py", *map(str, arguments)])
    start.main()


@pytest.fixture
def files(write_jsonl):
    corpus = write_jsonl("corpus.jsonl", [passage(n) for n in range(20)])
    retrieved = write_jsonl("retrieved.jsonl", [question(n) for n in range(12)])
    return ["--corpus", corpus, "--retrieved", retrieved]


def test_bad_inputs(monkeypatch, files, write_jsonl, tiny_encoder, tmp_path):
    output = ["--output_dir", tmp_path / "out", "--model_name_or_path", tiny_encoder]
    with pytest.raises(UserError, match="12 usable questions, --held_out 600 leaves none"):
        command(monkeypatch, *files, *output)
    with pytest.raises(UserError, match="no question has an answer in its top 20 and 7 without"):
        command(monkeypatch, *files[:2], "--retrieved", write_jsonl("none.jsonl", [question(1, right=0)]), *output)
    with pytest.raises(UserError, match="3 passages; a group needs 8"):
        few = write_jsonl("few.jsonl", [passage(n) for n in range(3)])
        command(monkeypatch, "--corpus", few, *files[2:], *output)
    with pytest.raises(UserError, match=r"untitled.jsonl:1: field 'title': missing"):
        command(monkeypatch, "--corpus", write_jsonl("untitled.jsonl", [{"text": "x"}]), *files[2:], *output)
    with pytest.raises(UserError, match="holds an adapter already"):
        command(monkeypatch, *files, "--output_dir", REPOSITORY / "data" / "selector_start")
    assert not (tmp_path / "out").exists()


def test_a_small_run_makes_an_adapter_that_loads(monkeypatch, files, tiny_encoder, tmp_path):
    pytest.importorskip("peft")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    output = tmp_path / "out"
    command(
        monkeypatch, *files, "--output_dir", output, "--model_name_or_path", tiny_encoder, "--held_out", 4,
        "--batch_size", 4, "--corpus_passes", 1, "--question_passes", 1, "--max_length", 64, "--device", "cpu",
    )  # fmt: skip
    chosen = json.loads((output / "questions.json").read_text())
    assert len(chosen["held_out"]) == 4 and len(chosen["trained_on"]) == 8
    assert not set(chosen["held_out"]) & set(chosen["trained_on"])
    quality = json.loads((output / "quality.json").read_text())
    assert quality["settings"]["seed"] == 42 and 0 <= quality["adapter"]["hit@1"] <= quality["adapter"]["hit@3"] <= 1
    config = json.loads((output / "adapter_config.json").read_text())
    shipped = json.loads((REPOSITORY / "data" / "selector_start" / "adapter_config.json").read_text())
    for name in ("r", "lora_alpha", "task_type", "peft_type", "exclude_modules"):
        assert config[name] == shipped[name]
    assert set(config["target_modules"]) == set(shipped["target_modules"])

    base = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=1)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    after = PeftModel.from_pretrained(base, output).merge_and_unload().state_dict()
    changed = {name for name, weight in after.items() if name in before and not torch.equal(weight, before[name])}
    adapted = {"bert.encoder.layer.0.attention.self.query.weight", "bert.pooler.dense.weight"}
    assert adapted | {"classifier.weight"} <= changed


def test_training_on_from_an_adapter_keeps_its_split_and_ends_halfway(
    monkeypatch, files, write_jsonl, tiny_encoder, tmp_path
):
    pytest.importorskip("peft")
    common = ["--model_name_or_path", tiny_encoder, "--batch_size", 4, "--max_length", 64, "--device", "cpu"]
    first, second = tmp_path / "first", tmp_path / "second"
    command(monkeypatch, *files, "--output_dir", first, "--held_out", 4, *common, "--corpus_passes", 1)
    asked = json.loads((first / "questions.json").read_text())
    backgrounds = write_jsonl("b.jsonl", [{"question": q, "background": "A gate."} for q in asked["trained_on"]])
    drawn, halves = [], start.question_groups
    monkeypatch.setattr(start, "question_groups", lambda *given: drawn.append(halves(*given)) or drawn[-1])
    became = []
    turn = start.turn_halfway_back
    monkeypatch.setattr(
        start, "turn_halfway_back",
        lambda model, adapter: (became.append(now_of(model)), turn(model, adapter), became.append(now_of(model))),
    )  # fmt: skip
    command(
        monkeypatch, *files[2:], "--output_dir", second, *common, "--adapter", first, "--backgrounds", backgrounds,
        "--corpus_passes", 0, "--question_passes", 1,
    )  # fmt: skip
    assert {k: set(v) for k, v in json.loads((second / "questions.json").read_text()).items()} == {
        k: set(v) for k, v in asked.items()
    }
    assert all("A gate." in passages[1:] for _, passages in drawn[0])
    before = start.adapter_weights(first)
    for name, ended in became[1].items():
        assert ended.allclose((before[name] + became[0][name]) / 2)
    assert any(not became[0][name].equal(before[name]) for name in before)
    with pytest.raises(UserError, match="--corpus is missing"):
        command(monkeypatch, *files[2:], "--output_dir", tmp_path / "third", *common)


def now_of(model) -> dict:
    from peft import get_peft_model_state_dict

    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model.model).items()}


def test_an_own_passage_that_holds_an_answer_is_not_wrong():
    own = {"title": "", "text": "Town 0.", "hasanswer": True}
    ((_, passages),) = start.question_groups([{**question(1), "own": [own]}], 8, random.Random(0))
    assert "Town 0." not in passages
    ((_, passages),) = start.question_groups(
        [{**question(1), "own": [{**own, "hasanswer": False}]}], 8, random.Random(0)
    )
    assert passages[1] == "Town 0." and len(passages) == 8
