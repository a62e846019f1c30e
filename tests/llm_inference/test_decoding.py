"""Decoding of our own writes what transformers' `generate` writes."""

import random

import pytest
import torch
from causal_models import make_causal_lm

from gainRAG.common import packed_linear
from gainRAG.common.packed_linear import PackedLinear, pack_linear_layers
from gainRAG.llm_inference.decoding import MASKED_MODEL_TYPES, common_start, decode_greedily, share_heads, takes_masks

VOCABULARY = 60
END, PAD = 1, 0


def make_rows(start: int, count: int = 11) -> list[list[int]]:
    """Prompts of 1 to 30 tokens behind a common start."""
    rng = random.Random(0)
    common = rng.choices(range(2, VOCABULARY), k=start)
    return [common + rng.choices(range(2, VOCABULARY), k=1 + 3 * index) for index in range(count)]


@torch.inference_mode()
def generate_plainly(model, rows, max_new_tokens, ends):
    """transformers' own decoding, one prompt at a time."""
    written = []
    for row in rows:
        ids = torch.tensor([row])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False,
            eos_token_id=sorted(ends), pad_token_id=PAD,
        )  # fmt: skip
        written.append(output[0, len(row) :].tolist())
    return written


@pytest.mark.parametrize("kind", sorted(MASKED_MODEL_TYPES))
def test_writes_what_generate_writes(kind):
    plain, model = (make_causal_lm(VOCABULARY, kind) for _ in range(2))
    assert takes_masks(model)
    share_heads(model)
    ends = {END, 7, 11, 13}
    lengths = set()
    for rows in (make_rows(0), make_rows(20), make_rows(20)[:1]):
        expected = generate_plainly(plain, rows, 16, ends)
        for prefill_tokens in (1, 100, 10_000):
            assert decode_greedily(model, rows, 16, ends, prefill_tokens) == expected
        lengths |= set(map(len, expected))
    assert len(lengths) > 1, "rows leave the batch at different times"
    assert generate_plainly(model, make_rows(20), 16, ends) == generate_plainly(plain, make_rows(20), 16, ends)


def test_takes_no_model_that_makes_its_own_mask():
    assert not takes_masks(make_causal_lm(VOCABULARY, "gemma2"))
    assert not takes_masks(make_causal_lm(VOCABULARY, "bloom"))


def test_the_common_start_leaves_every_row_a_token():
    assert common_start(make_rows(20)) == 20
    assert common_start([list(range(30)), list(range(20))]) == 19
    assert common_start([list(range(30))] * 2) == 29
    assert common_start(make_rows(3)) == 0, "too short to be worth it"


def test_the_common_start_is_read_once_and_rows_that_ended_are_not_read(monkeypatch):
    model, rows = make_causal_lm(VOCABULARY, "llama"), make_rows(20)
    shapes = []
    model.model.register_forward_pre_hook(
        lambda _, args, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    written = decode_greedily(model, rows, 16, {END, 7, 11, 13}, 10_000)
    working = [sum(len(tokens) > step for tokens in written) for step in range(1, 16)]
    assert shapes[:2] == [(1, 20), (len(rows), max(map(len, rows)) - 20)]
    assert shapes[2:] == [(count, 1) for count in working if count]
    assert len(set(working)) > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_compute_the_same(dtype):
    if not packed_linear._can_pack(dtype):
        pytest.skip(f"this CPU or build of torch packs no {dtype}")
    plain, packed = (make_causal_lm(VOCABULARY, "gpt_neox").to(dtype) for _ in range(2))
    assert pack_linear_layers(packed) is packed
    assert type(packed.get_output_embeddings()) is PackedLinear
    ids = torch.tensor(make_rows(20)[-2:-1])
    with torch.inference_mode():
        expected, found = plain(ids).logits.float(), packed(ids).logits.float()
    assert (found - expected).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * expected.norm()


def test_layers_stay_plain_where_packing_does_not_fit(monkeypatch):
    model = make_causal_lm(VOCABULARY, "llama")
    monkeypatch.setattr(packed_linear, "MOST_BYTES", 1000)
    assert not any(isinstance(layer, PackedLinear) for layer in pack_linear_layers(model).modules())
    monkeypatch.undo()
    assert not any(isinstance(layer, PackedLinear) for layer in pack_linear_layers(model.half()).modules())
    with torch.device("meta"):
        model = make_causal_lm(VOCABULARY, "llama")
    assert not any(isinstance(layer, PackedLinear) for layer in pack_linear_layers(model).modules())
