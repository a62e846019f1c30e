"""Loss, sampling, tokenising and measures of the selector's training, each against an independent computation."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import each
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.training_args import ParallelMode

from gainRAG.common.cli import UserError
from gainRAG.common.models import longest_input
from gainRAG.selector_finetune.arguments import TrainingArguments
from gainRAG.selector_finetune.dataset import EpochOrder, GroupCollator, GroupDataset, read_groups
from gainRAG.selector_finetune.modeling import DistilledCrossEncoder, distillation_loss
from gainRAG.selector_finetune.runner import SelectorRunner
from gainRAG.selector_finetune.trainer import METRICS, ranking_metrics

ABSENT = -torch.inf


def group(query: str, scores: list[float]) -> dict:
    """One positive, the rest negatives, every passage its own text."""
    texts = [f"{query} passage {number}" for number in range(len(scores))]
    return {"query": query, "pos": texts[:1], "neg": texts[1:], "pos_scores": scores[:1], "neg_scores": scores[1:]}


def groups_of(*sizes: int) -> list[dict]:
    draw = random.Random(0)
    return [
        group(f"question {i}", sorted((-draw.uniform(0.7, 6) for _ in range(size)), reverse=True))
        for i, size in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def tokenizer(tiny_reranker):
    return AutoTokenizer.from_pretrained(tiny_reranker)


@pytest.fixture
def model(tiny_reranker, tokenizer):
    base = AutoModelForSequenceClassification.from_pretrained(tiny_reranker)
    return DistilledCrossEncoder(base, tokenizer).eval()


def softmax(values) -> np.ndarray:
    powers = np.exp(np.asarray(values, dtype=np.float64) - np.max(values))
    return powers / powers.sum()


@each("temperature", [1.0, 2.5])
def test_distillation_loss_and_its_gradient_equal_numpy(temperature):
    students, teachers = [[0.3, -1.2, 4.0, 0.0], [2.0, -9.0]], [[-0.7, -3.0, -1.1, -8.0], [-0.9, -700.0]]
    student = torch.tensor([students[0], [*students[1], ABSENT, ABSENT]], requires_grad=True)
    teacher = torch.tensor([teachers[0], [*teachers[1], ABSENT, ABSENT]])
    losses = distillation_loss(student, teacher, temperature)
    losses.mean().backward()
    for row, (scores, gold) in enumerate(zip(students, teachers, strict=True)):
        target, predicted = softmax(np.array(gold) / temperature), softmax(scores)
        expected = np.sum(target * (np.log(np.maximum(target, 1e-300)) - np.log(predicted)))
        assert losses[row].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
        np.testing.assert_allclose(student.grad[row, : len(scores)], (predicted - target) / 2, atol=1e-6)
        assert not student.grad[row, len(scores) :].any()


def test_distillation_loss_is_float32_for_half_precision_scores():
    student = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    assert distillation_loss(student, torch.tensor([[-1.0, -2.0, -3.0]])).dtype == torch.float32


def test_gradient_equals_listnet_of_sentence_transformers(tiny_reranker, model, tokenizer):
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import ListNetLoss

    records = groups_of(4, 4, 4)
    data = GroupDataset(records, tokenizer, 512, seed=0)
    batch = GroupCollator(tokenizer, padding="longest")([data[i] for i in range(3)])
    model(**batch).loss.backward()

    other = CrossEncoder(str(tiny_reranker), num_labels=1, device="cpu").eval()
    texts, scores = zip(*(zip(*data.passages(i), strict=True) for i in range(3)), strict=True)
    queries = [record["query"] for record in records]
    ListNetLoss(other)([queries, [list(row) for row in texts]], [torch.tensor(row) for row in scores]).backward()
    ours = dict(model.model.named_parameters())
    for name, parameter in other.model.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-6, rtol=1e-4)


def test_unequal_groups_in_a_batch_give_the_mean_of_their_own_losses(model, tokenizer):
    data = GroupDataset(groups_of(5, 2, 3), tokenizer, 512, seed=0)
    collate = GroupCollator(tokenizer, padding="longest", pad_to_multiple_of=8)
    together = model(**collate([data[0], data[1], data[2]]))
    alone = [model(**collate([data[i]])).loss.item() for i in range(3)]
    assert together.loss.item() == pytest.approx(np.mean(alone), rel=1e-5)
    assert (together.scores != ABSENT).sum(dim=1).tolist() == [5, 2, 3]


def test_plain_weights_load_back_under_the_wrapper_names(model, tmp_path):
    from safetensors.torch import load_file

    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    saved = load_file(tmp_path / "model.safetensors")
    assert {name.split(".")[0] for name in saved} == {"roberta", "classifier"}
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data.zero_()
    assert not model.load_state_dict(saved, strict=False).missing_keys
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_group_is_one_positive_and_distinct_negatives(tokenizer):
    records = groups_of(21)
    records[0]["pos"].append("second positive")
    records[0]["pos_scores"].append(-0.6)
    drawn = GroupDataset(records, tokenizer, 512, seed=0, group_size=16).passages(0)
    texts = [text for text, _ in drawn]
    assert len(set(texts)) == 16
    assert texts[0] in records[0]["pos"]
    known = dict(zip(records[0]["neg"], records[0]["neg_scores"], strict=True))
    assert all(known[text] == score for text, score in drawn[1:])


def test_too_few_negatives_make_a_smaller_group_without_repeats(tokenizer):
    data = GroupDataset(groups_of(4), tokenizer, 512, seed=0, group_size=16)
    pairs, scores, _ = data[0]
    assert len(pairs) == len(scores) == 4
    assert len({text for text, _ in data.passages(0)}) == 4


def test_groups_depend_on_seed_epoch_and_question_only(tokenizer):
    records = groups_of(*[12] * 6)
    options = {"tokenizer": tokenizer, "max_length": 512, "group_size": 5}
    data = GroupDataset(records, seed=1, **options)
    first = [data.passages(i) for i in range(6)]
    backwards = GroupDataset(records[::-1], seed=1, **options)
    assert [backwards.passages(5 - i) for i in range(6)] == first
    assert [GroupDataset(records, seed=2, **options).passages(i) for i in range(6)] != first
    data.epoch = 1
    assert [data.passages(i) for i in range(6)] != first
    data.epoch = 0
    assert [data.passages(i) for i in range(6)] == first
    fixed = GroupDataset(records, seed=1, resample=False, **options)
    fixed.epoch = 3
    assert [fixed.passages(i) for i in range(6)] == first


def test_workers_that_outlive_an_epoch_draw_the_next_epochs_groups(tokenizer):
    data = GroupDataset(groups_of(*[12] * 6), tokenizer, 512, seed=1, group_size=5)
    loader = DataLoader(data, sampler=EpochOrder(data), num_workers=2, persistent_workers=True, collate_fn=list)
    for epoch in range(2):
        data.epoch = epoch
        assert list(loader) == [[data[i]] for i in EpochOrder(data)]


def test_order_of_questions_changes_with_the_epoch_and_groups_lengths(tokenizer):
    data = GroupDataset(groups_of(*[3] * 400), tokenizer, 512, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        data.epoch = epoch
        orders.append(list(EpochOrder(data)))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(400))
    lengths = random.Random(0).choices(range(10, 400), k=400)
    grouped = [[lengths[i] for i in batch] for batch in np.reshape(list(EpochOrder(data, lengths, 4)), (100, 4))]
    assert np.mean([max(batch) - min(batch) for batch in grouped]) < 80


@pytest.mark.parametrize(("update_size", "whole", "filled"), [(8, 8, 8), (16, 0, 16), (4, 8, 4)])
def test_the_last_update_is_filled_with_questions_that_do_not_count(tokenizer, update_size, whole, filled):
    data = GroupDataset(groups_of(*[3] * 11), tokenizer, 512, seed=1)
    order = EpochOrder(data, update_size=update_size, fill_to=min(update_size, 8))
    drawn, plain = list(order), list(EpochOrder(data))
    assert len(order) == len(drawn) == whole + filled
    assert drawn[:whole] == plain[:whole]
    real = 11 - whole
    assert [item.index for item in drawn[whole:11]] == plain[whole:]
    assert [item.weight for item in drawn[whole:]] == [filled / real] * real + [0] * (filled - real)
    assert data[drawn[whole]][2] == filled / real and data[plain[0]][2] == 1


def test_whole_updates_are_not_filled(tokenizer):
    data = GroupDataset(groups_of(3, 3), tokenizer, 512, seed=1)
    assert sorted(EpochOrder(data, update_size=2, fill_to=2)) == [0, 1]


def test_pairs_are_cut_to_the_models_positions_and_run(model, tokenizer):
    limit = longest_input(model.model.config, tokenizer)
    assert limit == 512
    record = group("what", [-1.0, -2.0])
    record["pos"] = ["the river Nile in Africa " * 400]
    data = GroupDataset([record], tokenizer, limit, seed=0)
    pairs, scores, _ = data[0]
    assert sorted(len(pair["input_ids"]) for pair in pairs)[1] == 512
    batch = GroupCollator(tokenizer, padding="longest", pad_to_multiple_of=8)([(pairs, scores, 1.0)])
    assert torch.isfinite(model(**batch).loss)


def test_positions_of_bert_start_at_nought(tiny_encoder):
    base = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=1)
    assert longest_input(base.config, AutoTokenizer.from_pretrained(tiny_encoder)) == 512


@pytest.mark.parametrize("words", [30, 200])
def test_question_longer_than_the_pair_still_leaves_a_pair_that_fits(tokenizer, words):
    record = group("which capital? " * words, [-1.0, -2.0])
    pairs, _, _ = GroupDataset([record], tokenizer, 32, seed=0)[0]
    assert all(len(pair["input_ids"]) <= 32 for pair in pairs)


@pytest.mark.parametrize("score", ["NaN", "Infinity", "-1e999"])
def test_scores_that_are_no_numbers_are_refused_with_their_line(tmp_path, score):
    path = tmp_path / "train.jsonl"
    good = '{"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [-1], "neg_scores": [-2]}\n'
    path.write_text(good * 2 + good.replace("-2", score))
    with pytest.raises(UserError, match=r"train\.jsonl:3: field 'neg_scores\[0\]'"):
        read_groups([str(path)])


def test_metrics_equal_a_computation_by_hand():
    teacher = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -1.0, ABSENT], [-2.0, -2.0, ABSENT]])
    student = torch.tensor([[0.1, 0.9, 0.5], [-5.0, -4.0, ABSENT], [0.0, 1.0, ABSENT]])
    loss, agreement, regret, ndcg = ranking_metrics(student, teacher).T.tolist()
    assert agreement == [0, 1, 1]
    assert regret == [1, 0, 0]
    discount = 1 / np.log2([2, 3, 4])
    assert ndcg == pytest.approx([np.dot([2, 0, 3], discount) / np.dot([3, 2, 0], discount), 1, 1])
    assert loss == pytest.approx(distillation_loss(student, teacher).tolist())
    assert len(METRICS) == 4


def test_ndcg_counts_ten_places():
    teacher = -torch.arange(12.0).unsqueeze(0)
    worst = torch.arange(12.0).unsqueeze(0)
    gains, discount = np.arange(11, -1, -1), 1 / np.log2(np.arange(2, 12))
    expected = np.dot(gains[::-1][:10], discount) / np.dot(gains[:10], discount)
    assert ranking_metrics(worst, teacher)[0, 3].item() == pytest.approx(expected)


def test_evaluation_shows_every_passage_and_does_not_favour_a_constant_score(tokenizer):
    data = GroupDataset(groups_of(*[5] * 300), tokenizer, 512, seed=0)
    assert len(data.passages(0)) == 5
    first = [data.passages(i)[0][0] == data.groups[i]["pos"][0] for i in range(300)]
    assert 0.1 < np.mean(first) < 0.3


def test_one_process_trains_on_one_gpu(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path))
    assert args.device.type == "cpu" or args.n_gpu == 1
    args._n_gpu = 4  # what transformers finds where 4 GPUs are visible and no torchrun
    assert args.n_gpu == 1
    assert args.parallel_mode == ParallelMode.NOT_PARALLEL
    assert args.train_batch_size == args.per_device_train_batch_size


def test_an_interrupted_training_names_the_flag_that_resumes_it():
    def train(**_):
        raise KeyboardInterrupt

    runner = SelectorRunner.__new__(SelectorRunner)
    runner.trainer, runner.training_args = SimpleNamespace(train=train), SimpleNamespace(resume_from_checkpoint=None)
    with pytest.raises(KeyboardInterrupt, match="--resume_from_checkpoint auto, without --overwrite_output_dir"):
        runner._train()


def test_the_defaults_are_the_published_values(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path))
    assert (args.learning_rate, args.num_train_epochs, args.weight_decay) == (6e-5, 2, 0.01)
    assert args.get_warmup_steps(1000) == 100
    assert TrainingArguments(output_dir=str(tmp_path), warmup_steps=7).get_warmup_steps(1000) == 7
    assert TrainingArguments(output_dir=str(tmp_path), warmup_ratio=0).get_warmup_steps(1000) == 0
