"""benchmarks/cost_model.py: the page shows its numbers, the defaults fit, its counters count."""

import importlib
import re

import pytest
import torch
from conftest import REPOSITORY
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

GB = 10**9
SHAPE = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "attn_implementation": "eager",
}  # fmt: skip


@pytest.fixture(scope="module")
def cost_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")  # benchmarks import one another by their bare names
        yield importlib.import_module("cost_model")


def small_llm(device: str):
    with torch.device(device):
        return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float32).eval()


def test_the_pages_show_its_numbers_and_the_defaults_fit(cost_model):
    full, small = cost_model.model_costs(), cost_model.model_costs(small=True)
    assert cost_model.table(full, small, 0.5) in (REPOSITORY / "docs" / "cluster.md").read_text("utf-8")
    hours = cost_model.total_hours(full, cost_model.DEVICES["H100"], 0.5)
    shown = re.search(r"(\d+) hours \(predicted\)", (REPOSITORY / "README.md").read_text("utf-8"))
    assert int(shown[1]) == round(hours)
    planned = re.findall(r'"(\d+\.\d)"', (REPOSITORY / "scripts" / "plan.py").read_text("utf-8"))
    assert sum(map(float, planned)) == pytest.approx(hours, abs=0.2)  # steps of less than 0.1 have no number
    assert max(cost.peak for cost in full) < 80 * GB
    assert max(cost.peak for cost in small) < 24 * GB
    needed = [cost.stage for cost in full if cost.dtype == "float32" and cost.peak >= 24 * GB]
    assert [cost.stage for cost in small if cost.flags] == needed  # budgets of texts go by the device themselves


def test_flops_are_those_counted_by_hand(cost_model):
    model, rows, lengths = small_llm("meta"), 6, cost_model.Lengths(start=40, prompt=237, answer=4)
    found = cost_model.count(lambda: cost_model.gain_batch(cost_model.UncheckedModel(model), rows, lengths)).flops
    new = lengths.prompt + lengths.answer - 1 - lengths.start  # 200, a multiple of 8: no padding
    embeddings = model.get_input_embeddings().weight.numel()
    body = sum(weight.numel() for weight in model.parameters()) - 2 * embeddings
    seen = lengths.start**2 + rows * new * (lengths.start + new)  # pairs of query and key, masked ones included
    attention = 4 * SHAPE["num_hidden_layers"] * SHAPE["hidden_size"] * seen
    by_hand = 2 * body * (lengths.start + rows * new) + attention + 2 * embeddings * rows * lengths.answer
    assert found == pytest.approx(by_hand, rel=0.02)


def test_the_peak_is_what_a_cpu_allocates(cost_model):
    """Within 5 %: the profiler sees every allocation and release of the CPU, those of single kernels included."""
    rows, lengths = 6, cost_model.Lengths(start=40, prompt=237, answer=4)
    on_meta = cost_model.UncheckedModel(small_llm("meta"))
    predicted = cost_model.count(lambda: cost_model.gain_batch(on_meta, rows, lengths)).peak
    on_cpu = cost_model.UncheckedModel(small_llm("cpu"))
    cost_model.gain_batch(on_cpu, rows, lengths)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        cost_model.gain_batch(on_cpu, rows, lengths)
    live = peak = 0
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert predicted == pytest.approx(peak, rel=0.05)
