"""data/extract_adapter.py: start and adapter together are nearly the trained selector, and at full rank exactly."""

import importlib.util
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
            if weight.dim() == 2 and "embeddings" not in name:
                weight += 0.05 * torch.randn_like(weight)
    cross_encoder_of("RoBERTa", folder / "trained")
    model.save_pretrained(folder / "trained")
    return start, folder / "trained"


@pytest.fixture
def extract(monkeypatch, tmp_path, models):
    def run(rank: int):
        arguments = ["--start", models[0], "--selector", models[1], "--rank", rank]
        folders = ["--output_dir", tmp_path / "adapter", "--merged_dir", tmp_path / "merged"]
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
    merge_adapter(models[0], tmp_path / "adapter", tmp_path / "again")  # what users of the adapter do
    assert distance(extract(2), tmp_path / "again") == 0


def test_another_models_selector_is_refused(models, tmp_path, monkeypatch):
    other = cross_encoder_of("RoBERTa", tmp_path / "wide", intermediate_size=48)
    arguments = ["--start", models[0], "--selector", other, "--output_dir", tmp_path / "adapter"]
    monkeypatch.setattr(sys, "argv", ["extract_adapter.py", *map(str, arguments)])
    with pytest.raises(UserError, match="the selector has none of this shape; it was not trained from this start"):
        script.main()
