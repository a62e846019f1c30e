"""Batches: what falls into one, and what happens where memory runs out."""

import pytest
import torch
from transformers import BertConfig, BertModel, DebertaV2Config

from gainRAG.common.batching import BatchBudget, attention_mask

LENGTHS = [3, 9, 4, 9, 1, 8, 3]


def batches(budget: BatchBudget, lengths=LENGTHS, **options) -> list[list[int]]:
    return [batch for batch, _ in budget.run(lengths, lambda batch: None, **options)]


def test_longest_first_within_the_budget_and_equals_in_order():
    assert batches(BatchBudget(18)) == [[1, 3], [5, 2], [0, 6, 4]]
    assert batches(BatchBudget(None)) == [[1, 3, 5, 2, 0, 6, 4]]
    assert batches(BatchBudget(None, rows=3)) == [[1, 3, 5], [2, 0, 6], [4]]
    assert batches(BatchBudget(1)) == [[item] for item in (1, 3, 5, 2, 0, 6, 4)]  # an item that is too long goes alone
    assert batches(BatchBudget(18), []) == []


def test_even_batches_end_where_the_length_changes_once_they_are_filled_a_little():
    assert batches(BatchBudget(72), even=True) == [[1, 3], [5, 2], [0, 6, 4]]
    assert batches(BatchBudget(800), even=True) == [[1, 3, 5, 2, 0, 6, 4]]


def test_outputs_belong_to_their_items():
    found = dict.fromkeys(range(len(LENGTHS)))
    for batch, output in BatchBudget(18).run(LENGTHS, lambda batch: [LENGTHS[item] * 10 for item in batch]):
        found.update(zip(batch, output, strict=True))
    assert list(found.values()) == [30, 90, 40, 90, 10, 80, 30]


def test_memory_that_runs_out_halves_the_budget_for_the_rest_of_the_run(caplog):
    tried = []

    def forward(batch):
        tried.append(list(batch))
        if sum(9 for _ in batch) > 18:
            raise torch.OutOfMemoryError
        return batch

    budget = BatchBudget(1000)
    assert [batch for batch, _ in budget.run([9] * 6, forward)] == [[0], [1], [2], [3], [4], [5]]
    assert [len(batch) for batch in tried[:2]] == [6, 3]
    assert budget.tokens == 13  # of 27 that were too many
    assert [batch for batch, _ in budget.run([6] * 4, forward)] == [[0, 1], [2, 3]]  # remembered
    assert "out of memory: batches of 13 tokens from now on" in caplog.text


def test_one_item_that_does_not_fit_is_an_error():
    def forward(batch):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        list(BatchBudget(8).run([4, 4], forward))


def test_the_model_gets_a_mask_that_it_takes_without_reading_it():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    model = BertModel(config).eval()
    ids, mask = torch.randint(1, 20, (2, 5)), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    given = attention_mask(mask, False, model.config)
    assert given.shape == (2, 1, 1, 5)
    states = [model(input_ids=ids, attention_mask=one).last_hidden_state[mask] for one in (mask.long(), given)]
    assert torch.equal(*states)
    assert not torch.allclose(states[0], model(input_ids=ids).last_hidden_state[mask])
    assert attention_mask(mask, True, model.config) is None
    other = DebertaV2Config()  # its attention makes more of a mask than what is padding
    other._attn_implementation = "eager"
    assert torch.equal(attention_mask(mask, False, other), mask.long())
