"""The tensor code of the GPU paths at real size on the meta device, which has no memory and refuses other operands.

Models have two layers, which are alike, unless a test says otherwise. Values are read nowhere here: meta has none.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import each
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gainRAG.common.batching import BatchBudget
from gainRAG.llm_inference.decoding import _Batch, share_heads
from gainRAG.llm_supervision import answer_tree
from gainRAG.llm_supervision.answer_tree import AnswerTree, Row
from gainRAG.llm_supervision.gain import SLICE_LOGITS, GainScorer
from gainRAG.retrieval_engine.modeling import Encoder
from gainRAG.selector_engine.selector import Selector

META = torch.device("meta")
SHARED = {"vocab_size": 128256, "num_hidden_layers": 2, "num_key_value_heads": 8, "max_position_embeddings": 8192}
LLAMA_3_8B = {**SHARED, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
LLAMA_3_70B = {**SHARED, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}
XLM_R = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "num_labels": 1}
RERANKER_BASE = {**XLM_R, "num_hidden_layers": 2}
RERANKER_LARGE = {
    **RERANKER_BASE, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_questions_about_values(monkeypatch):
    """transformers looks whether a mask is True everywhere, and whether positions start anew: meta cannot answer."""
    monkeypatch.setattr("transformers.masking_utils._ignore_bidirectional_mask_sdpa", lambda *_, **__: False)
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda *_: None)


TRANSFERS = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default)


class Watch(TorchDispatchMode):
    """Notes what every operator makes, and fails where one makes numbers on the CPU or is given some from there."""

    def __init__(self) -> None:
        super().__init__()
        self.float32: list[int] = []  # bytes of each tensor in float32
        self.formats: set[torch.dtype] = set()  # of what the model's layers make (attention has its own on meta)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor) and value.dim()]
        if function not in TRANSFERS and META in {tensor.device for tensor in given}:
            assert all(tensor.device == META for tensor in given), f"{function}: an operand lies on the CPU"
        if "scaled_dot_product" in str(function):
            masks = [tensor for tensor in given[3:] if tensor.dtype != torch.bool]
            assert all(mask.dtype == given[0].dtype for mask in masks), f"{function}: a mask in another number format"
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                assert tensor.device == META or tensor.numel() < 2, f"{function} computes on the {tensor.device}"
                if tensor.dtype == torch.float32:
                    self.float32.append(tensor.nbytes)
                if function in PRODUCTS:
                    self.formats.add(tensor.dtype)
        return made


def make_llm(sizes: dict, dtype: torch.dtype = torch.bfloat16):
    from transformers import AutoModelForCausalLM, LlamaConfig

    with META:
        return AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=dtype).eval()


def make_reranker(sizes: dict, dtype: torch.dtype):
    from transformers import AutoModelForSequenceClassification, XLMRobertaConfig

    with META:
        return AutoModelForSequenceClassification.from_config(XLMRobertaConfig(**sizes), dtype=dtype)


def prompts(count: int, tokens: int) -> list[list[int]]:
    """Prompts with a common start of 40 tokens and of different lengths."""
    return [[*range(40), *range(1000 + row, 1000 + row + tokens - 40 - 3 * (row % 9))] for row in range(count)]


@each("sizes", [LLAMA_3_8B, LLAMA_3_70B])
def test_gain(monkeypatch, sizes):
    monkeypatch.setattr(answer_tree, "_are_alike", lambda *_: True)  # it reads values
    scorer = GainScorer(make_llm(sizes), tokenizer=None)
    trees = [AnswerTree([[5, 6, 7]]), AnswerTree([[5, 6, 7], [5, 8], [9, 9, 9, 9]])]
    with Watch() as watch:
        for tree in trees:
            passages = scorer._hidden_states([Row(prompt, tree) for prompt in prompts(200, 245)])
            [question] = scorer._hidden_states([Row(prompts(1, 90)[0], tree)])
            nll = scorer._answer_nll(tree, question, torch.stack(passages))
            assert nll.shape == (2, 200, len(tree.answers))
            assert nll.device == META
    assert watch.formats == {torch.bfloat16}
    # Float32 comes from the norms, a layer's input at a time (rows end at a multiple of 8, so a batch may be a little
    # above its budget), and from slices of logits: never from all logits of a batch.
    assert max(watch.float32) <= 4 * 1.05 * scorer.budget.tokens * max(SLICE_LOGITS, sizes["hidden_size"])


@each("sizes", [LLAMA_3_8B, LLAMA_3_70B])
def test_greedy_decoding(sizes):
    model = make_llm(sizes)
    share_heads(model)
    with Watch() as watch, torch.inference_mode():
        batch = _Batch(model, prompts(60, 245), 160)
        tokens = torch.cat([batch.read_prompts(slice(first, first + 20)) for first in range(0, 60, 20)])
        tokens = batch.step(batch.drop([1, 5, 59], tokens))
        tokens = batch.step(tokens)
    assert tokens.shape == (57,)
    assert tokens.device == META
    assert all(kept.dtype == torch.bfloat16 and len(kept) == 57 for kept in (*batch.keys, *batch.values))
    assert max(watch.float32) <= max(4 * 60 * sizes["vocab_size"], 4 * 20 * 245 * sizes["hidden_size"])


class Encoding(SimpleNamespace):
    def __init__(self, ids: list[int]) -> None:
        super().__init__(ids=ids)

    def __len__(self) -> int:
        return len(self.ids)


def make_selector(sizes: dict) -> Selector:
    selector = Selector.__new__(Selector)
    selector.device, selector.budget = META, BatchBudget(65536)
    selector.model = make_reranker(sizes, torch.float16).eval()
    selector.tokenizer = SimpleNamespace(pad_token_id=1, model_input_names=["input_ids", "attention_mask"])
    return selector


@each("sizes", [RERANKER_BASE, RERANKER_LARGE])
def test_selector(sizes):
    selector = make_selector(sizes)
    pairs = [Encoding([5] * length) for length in (512, 512, 300, 170, 170, 20)]
    with Watch() as watch:
        ragged, even = selector._forward(pairs, [0, 2, 5]), selector._forward(pairs, [0, 1])
    assert ragged.shape == (3,) and even.shape == (2,)
    assert ragged.dtype == even.dtype == torch.float16
    assert watch.formats == {torch.float16}


@each("pooling", ["mean", "cls"])
def test_encoder(pooling):
    from transformers import AutoModel, BertConfig

    encoder = Encoder.__new__(Encoder)
    encoder.device, encoder.tokenizer = META, SimpleNamespace(pad_token_id=0)
    encoder.options = SimpleNamespace(pooling=pooling, normalize=True)
    with META:
        encoder.model = AutoModel.from_config(BertConfig(num_hidden_layers=2), dtype=torch.float16).eval()
    texts = [np.full(length, 7, "int32") for length in (512, 512, 145, 3)]
    with Watch(), torch.inference_mode():
        vectors = encoder._vectors(*encoder._padded(texts))
    assert vectors.shape == (4, 768)
    assert vectors.device == META
    assert vectors.dtype == torch.float32


@pytest.mark.skipif(pytest.importorskip("FlagEmbedding", reason="FlagEmbedding is not installed") is None, reason="")
@each("dtype", [torch.float16, torch.bfloat16])
@each("recompute", [False, True])
def test_training_step(dtype, recompute):
    """Weights in half precision, as DeepSpeed keeps them; autocast knows no meta device."""
    from gainRAG.selector_finetune.modeling import DistilledCrossEncoder

    base = make_reranker(RERANKER_BASE, dtype).train()
    if recompute:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    model = DistilledCrossEncoder(base, tokenizer=lambda *_, **__: {"input_ids": [0]})  # FlagEmbedding asks for "Yes"
    groups, passages, length = 8, 16, 170
    with META:
        pair = {"input_ids": torch.ones(groups * passages, length, dtype=torch.long)}
        pair["attention_mask"] = torch.ones_like(pair["input_ids"])
        teacher, weights = torch.zeros(groups, passages), torch.ones(groups)
        optimizer = torch.optim.AdamW(model.parameters(), lr=6e-5)
    with Watch() as watch:
        output = model(pair, teacher, weights)
        output.loss.backward()
        optimizer.step()
    assert output.scores.shape == (groups, passages)
    assert output.loss.dtype == torch.float32
    assert all(weight.grad.dtype == dtype for weight in model.parameters() if weight.grad is not None)
    assert watch.formats == {dtype}
