"""data/extract_adapter.py: start and adapter together are nearly the trained selector, and at full rank exactly."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import cross_encoder_of
from transformers import AutoModelForSequenceClassification

from gainRAG.common.cli import UserError
from gainRAG.common.models import merge_adapter

REPOSITORY = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("extract_adapter", REPOSITORY / "data" / "extract_adapter.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A start, and what a made-up training made of its linear layers."""
    folder = tmp_path_factory.mktemp("models")
    start = cross_encoder_of("RoBERTa", folder / "start")
    model = AutoModelForSequenceClassification.from_pretrained(start)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embeddings" not in name:
                weight += 0.05 * torch.randn_like(weight)
    shutil.copytree(start, folder / "trained")
    model.save_pretrained(folder / "trained")
    return start, folder / "trained"


@pytest.fixture
def groups(write_jsonl):
    """Training groups of a few words."""
    rows = [
        {"query": f"where is {n}", "pos": [f"{n} is here"], "neg": ["it is there", f"no {n} at all"],
         "pos_scores": [-1.0], "neg_scores": [-2.0, -3.0]}
        for n in range(12)
    ]  # fmt: skip
    return write_jsonl("train.jsonl", rows)


@pytest.fixture
def extract(monkeypatch, tmp_path, models, groups):
    def run(rank: int, selectors=models[1:], share=1):
        arguments = ["--start", models[0], "--selector", *selectors, "--train_data", groups, "--rank", rank]
        arguments += ["--share", share]
        folders = [word for name in ("output", "merged", "mean") for word in (f"--{name}_dir", tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["extract_adapter.py", *map(str, (*arguments, *folders))])
        script.main()
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")

    return run


def distance(model, folder) -> float:
    """How far a model's scores are from those of a folder's, at most."""
    other = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = torch.arange(5, 45).view(4, 10)
    with torch.no_grad():
        return (model(input_ids=ids).logits - other(input_ids=ids).logits).abs().max().item()


def test_at_full_rank_nothing_is_lost_and_at_a_low_one_less_than_all(extract, models, tmp_path, caplog):
    caplog.set_level("INFO")
    whole, far = distance(extract(1000), models[1]), distance(extract(2), models[1])
    start = distance(AutoModelForSequenceClassification.from_pretrained(models[0]), models[1])
    assert whole < 0.01 * start and whole < far  # float16 rounds the adapter
    assert "keeps 100.0 %" in caplog.text
    merge_adapter(models[0], tmp_path / "output", tmp_path / "again")  # what users of the adapter do
    assert distance(extract(2), tmp_path / "again") == 0


def test_a_share_of_the_mean_change_of_several(extract, models, tmp_path):
    start, trained = (AutoModelForSequenceClassification.from_pretrained(folder).state_dict() for folder in models)
    half, mean = (
        extract(1000, *rest).state_dict() for rest in ((models[1:], 0.5), (models,))
    )  # the start changed none
    quarter = extract(1000, models, 0.5).state_dict()
    extract(1, models, 0.5)
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mean").state_dict()
    for name, weight in start.items():
        change = trained[name] - weight
        torch.testing.assert_close(whole[name], weight + 0.25 * change)  # at rank 1, too
        if "embeddings" in name:  # which an adapter leaves out
            continue
        for found, share in ((half, 0.5), (mean, 0.5), (quarter, 0.25)):
            torch.testing.assert_close(found[name], weight + share * change, rtol=1e-3, atol=1e-3)  # float16


def test_what_the_pairs_show_is_kept_first():
    torch.manual_seed(0)
    change, inputs = torch.randn(6, 8), torch.randn(100, 8).double() * torch.tensor([9, 5, 1, 1, 1, 1, 1, 0.1])
    moment = inputs.T @ inputs / 100
    below, above, values = script.cut(change, moment)
    torch.testing.assert_close(above @ below, change)
    left, plain, right = torch.linalg.svd(change)
    for rank in range(1, 6):
        lost = (inputs @ (change - above[:, :rank] @ below[:rank]).T.double()).square().sum() / 100
        torch.testing.assert_close(lost, values[rank:].square().sum(), rtol=5e-3, atol=0)
        by_weight = change - left[:, :rank] * plain[:rank] @ right[:rank]
        assert lost < (inputs @ by_weight.T.double()).square().sum() / 100  # than by the change alone


def test_another_models_selector_is_refused(models, tmp_path, monkeypatch, groups):
    other = cross_encoder_of("RoBERTa", tmp_path / "wide", intermediate_size=48)
    arguments = [
        "--start",
        models[0],
        "--selector",
        other,
        "--train_data",
        groups,
        "--output_dir",
        tmp_path / "adapter",
    ]
    monkeypatch.setattr(sys, "argv", ["extract_adapter.py", *map(str, arguments)])
    with pytest.raises(UserError, match="a selector has none of this shape; it was not trained from this start"):
        script.main()


def test_an_output_that_would_replace_a_selector_is_refused(models, groups, monkeypatch, tmp_path):
    start, trained = models
    flags = ["--start", start, "--selector", trained, "--train_data", groups, "--output_dir", tmp_path / "adapter"]
    monkeypatch.setattr(sys, "argv", ["extract_adapter.py", *map(str, flags), "--merged_dir", str(trained)])
    with pytest.raises(UserError, match="would replace its own input"):
        script.main()
