"""What runs on a GPU, rehearsed at full size without one: models on torch's meta device, which holds no values.

Meta tensors refuse most operands of another device; `Watch` refuses the others, and holds number formats, and the size
of what has a vocabulary's length, to what is allowed. Widths and numbers of layers are the real ones, but for the 70B
LLM: 4 of its 80 layers, which are alike.
"""

import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import causal_tokenizer, each, pair_tokenizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    XLMRobertaConfig,
    masking_utils,
)

from gainRAG.common.batching import LLM_TOKENS
from gainRAG.llm_inference.decoding import _Batch, share_heads
from gainRAG.llm_supervision import answer_tree
from gainRAG.llm_supervision.gain import SLICE_LOGITS, GainRequest, GainScorer
from gainRAG.retrieval_engine import modeling
from gainRAG.selector_engine import selector

META = torch.device("meta")
GIVEN_TO_DEVICE = {"_to_copy", "copy_"}  # what brings a tensor to the device
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "_scaled_dot_product_efficient_attention"}

LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0}
LLAMA_8B = LlamaConfig(**LLAMA, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)
LLAMA_70B = LlamaConfig(**LLAMA, hidden_size=8192, intermediate_size=28672, num_hidden_layers=4, num_attention_heads=64)
XLM_R = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "num_labels": 1}
XLM_R |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "layer_norm_eps": 1e-5}
BASE = XLMRobertaConfig(**XLM_R)
LARGE = XLMRobertaConfig(
    **XLM_R, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
)
CONTRIEVER = BertConfig()  # its default sizes are BERT-base's


class Watch(TorchDispatchMode):
    """Looks at every operation while it is entered.

    Args:
        dtype: of the weights; every matrix product has to be in it. The outer product that makes rotary angles is not
            looked at, which Llama computes in float32.
        vocabulary: the size that marks a tensor as one of logits.
        most_logits: elements such a tensor may have.

    Attributes:
        products: the number of matrix products.
        logits: elements of the largest float32 tensor of a vocabulary's length.
    """

    def __init__(self, dtype: torch.dtype, vocabulary: int, most_logits: int = 0) -> None:
        super().__init__()
        self.dtype, self.vocabulary, self.most_logits = dtype, vocabulary, most_logits
        self.products = self.logits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name not in GIVEN_TO_DEVICE:
            self._check_devices(name, given)
        if name in PRODUCTS:
            self._check_product(name, given)
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        for made in tree_leaves(output):
            if isinstance(made, torch.Tensor) and made.untyped_storage()._cdata not in storages:
                self._check_size(name, made)
        return output

    def _check_devices(self, name: str, given: list[torch.Tensor]) -> None:
        devices = {tensor.device.type for tensor in given if tensor.dim()}
        assert len(devices) < 2, f"{name}: operands on {sorted(devices)}"

    def _check_product(self, name: str, given: list[torch.Tensor]) -> None:
        dtypes = {tensor.dtype for tensor in given if tensor.is_floating_point()}
        if given[0].is_meta and given[0].shape[-1] > 1:
            self.products += 1
            assert dtypes == {self.dtype}, f"{name}: operands in {dtypes}, the weights are in {self.dtype}"

    def _check_size(self, name: str, made: torch.Tensor) -> None:
        if self.vocabulary in made.shape and made.is_meta:
            size = made.numel()
            assert size <= self.most_logits, f"{name}: {made.dtype} {tuple(made.shape)}, allowed {self.most_logits}"
            if made.dtype == torch.float32:
                self.logits = max(self.logits, size)


class Gpu(TorchFunctionMode):
    """What torch does for a GPU alone: attention by a fused kernel, and autocast, for which its documented lists stand
    here as far as an encoder needs them.

    Args:
        autocast: the half format; None: no autocast.
    """

    HALF = {"linear", "matmul", "scaled_dot_product_attention"}
    FLOAT32 = {"layer_norm", "softmax", "log_softmax", "kl_div"}

    def __init__(self, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.autocast = autocast

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        dtype = self.autocast if name in self.HALF else torch.float32 if name in self.FLOAT32 else None
        if self.autocast and dtype:
            args = [cast(value, dtype) for value in args]
            kwargs = {key: cast(value, dtype) for key, value in kwargs.items()}
        return (attend if name == "scaled_dot_product_attention" else function)(*args, **kwargs)


def cast(value, dtype: torch.dtype):
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """scaled_dot_product_attention by the kernel that a GPU takes where there is a mask; a device without one would
    compute in float32."""
    if enable_gqa:
        key, value = (heads.repeat_interleave(query.shape[1] // key.shape[1], 1) for heads in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, query.requires_grad, dropout_p, is_causal, scale=scale)[0]


def make_meta(kind, config, dtype: torch.dtype):
    """The model on meta, refusing inputs from elsewhere: transformers moves a mask itself, waiting for the device."""
    with META:
        model = kind.from_config(config, dtype=dtype).eval()
    for module in {model, model.base_model}:
        module.register_forward_pre_hook(check_inputs, with_kwargs=True)
    return model


def check_inputs(module, args, kwargs) -> None:
    places = {name: value.device for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
    assert set(places.values()) <= {META}, f"inputs of {type(module).__name__}: {places}"


def make_words(tokens: int, seed: int = 0) -> str:
    """A text of about so many tokens of the tests' tokenizers, to which most letters are one."""
    return "".join(random.Random(seed).choices("bcdfghjklmnpqrstvwxz", k=tokens))


@pytest.fixture(autouse=True)
def unread_values(monkeypatch):
    """transformers reads from an LLM's inputs whether a row holds several texts: here none does. The scorer takes its
    own comparison of values for passed."""
    monkeypatch.setattr(answer_tree, "_are_alike", lambda *_: True)
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *_, **__: None)


# --- gain -----------------------------------------------------------------------------------------------------------


def make_requests(answers: int) -> list[GainRequest]:
    """Two questions of 20 passages and a pseudo-passage, about 310 tokens each behind a common start."""
    header = make_words(60)
    golds = ["Paris"] + [f"Pa{make_words(8, seed)}" for seed in range(answers - 1)]
    passages = [[f"{header}{make_words(250, 100 * q + p)}" for p in range(21)] for q in range(2)]
    return [GainRequest(f"{header}{make_words(20, q)}", passages[q], golds) for q in range(2)]


@each(("config", "answers"), [(LLAMA_8B, 1), (LLAMA_8B, 8), (LLAMA_70B, 8)])
def test_gain(config, answers):
    allowed = LLM_TOKENS * SLICE_LOGITS
    model = make_meta(AutoModelForCausalLM, config, torch.bfloat16)
    with Gpu(), Watch(torch.bfloat16, config.vocab_size, allowed) as watch:
        scorer = GainScorer(model, causal_tokenizer())
        [window] = scorer._windows(make_requests(answers))
        lowest = list(scorer._lowest_nll(window))
    assert [(tuple(part.shape), part.dtype, part.device) for part in lowest] == [((2, 21), torch.float64, META)] * 2
    states = scorer._hidden_states([window[0].passages[0]])[0]
    assert (states.dtype, states.shape[-1]) == (torch.bfloat16, config.hidden_size)
    assert watch.products > 7 * config.num_hidden_layers and watch.logits


# --- generation -----------------------------------------------------------------------------------------------------


@each("start", [0, 60])
def test_decoding(start):
    rows, config = 58, LLAMA_8B
    prompts = [[5] * start + [7 + row] * (150 + row) for row in range(rows)]
    model = make_meta(AutoModelForCausalLM, config, torch.bfloat16)
    share_heads(model)
    with torch.inference_mode(), Gpu(), Watch(torch.bfloat16, config.vocab_size, rows * config.vocab_size) as watch:
        batch = _Batch(model, prompts, 32)
        first = torch.cat([batch.read_prompts(slice(start, start + 30)) for start in range(0, rows, 30)])
        second = batch.step(first)
        third = batch.step(batch.drop([0, 3, 57], second))
    assert [(len(tokens), tokens.dtype, tokens.device) for tokens in (first, second, third)] == [
        (count, torch.int64, META) for count in (rows, rows, rows - 3)
    ]
    kept = [*batch.keys, *batch.values]
    assert {(layer.dtype, layer.device, len(layer)) for layer in kept} == {(torch.bfloat16, META, rows - 3)}
    assert watch.logits and watch.products > 4 * 7 * config.num_hidden_layers


# --- selector and encoder -------------------------------------------------------------------------------------------


@each("config", [BASE, LARGE])
def test_selector(config, monkeypatch):
    model = make_meta(AutoModelForSequenceClassification, config, torch.float16)
    monkeypatch.setattr(selector, "load_selector", lambda *_: (model, pair_tokenizer()))
    loaded = selector.Selector("rehearsed", META, torch.float16, batch_tokens=selector.BATCH_TOKENS["cuda"])
    pairs = [(make_words(20), make_words(100 + 5 * row, row)) for row in range(101)]
    with Gpu(), Watch(torch.float16, config.vocab_size) as watch:
        found = loaded._compute_chunk(loaded._encode(pairs))
    assert sorted(row for rows, _ in found for row in rows) == list(range(101))
    assert {(logits.dtype, logits.device) for _, logits in found} == {(torch.float16, META)}
    assert watch.products > 6 * config.num_hidden_layers


@each(("pooling", "dtype"), [("mean", torch.float16), ("cls", torch.bfloat16)])
def test_encoder(pooling, dtype, monkeypatch):
    model = make_meta(AutoModel, CONTRIEVER, dtype)
    monkeypatch.setattr(modeling, "_load", lambda *_: (SimpleNamespace(pad_token_id=0, model_max_length=512), model))
    encoder = modeling.Encoder(modeling.EncoderOptions("rehearsed", pooling, normalize=True, device="cpu"))
    encoder.device = META
    tokens = [torch.full((512 - row,), 5).int().numpy() for row in range(modeling.GPU_BATCH)]
    with torch.inference_mode(), Gpu(), Watch(dtype, CONTRIEVER.vocab_size) as watch:
        vectors = encoder._vectors(*encoder._padded(tokens))
    assert (tuple(vectors.shape), vectors.dtype, vectors.device) == ((256, 768), torch.float32, META)
    assert watch.products > 6 * CONTRIEVER.num_hidden_layers


# --- training -------------------------------------------------------------------------------------------------------


def make_batch(tokenizer) -> dict:
    """8 groups of 16 pairs, one group smaller, the longest pair of 512 tokens, as the collator gives them."""
    from gainRAG.selector_finetune.dataset import GroupCollator, GroupDataset

    texts = [make_words(100 + 30 * place, place) for place in range(16)]
    groups = [
        {"query": make_words(20, question), "pos": texts[:1], "neg": texts[1:], "pos_scores": [-1.0],
         "neg_scores": [-2.0] * 15} for question in range(8)
    ]  # fmt: skip
    groups[3] = {**groups[3], "neg": texts[1:4], "neg_scores": [-2.0] * 3}
    dataset = GroupDataset(groups, tokenizer, 512, seed=42, group_size=16)
    return GroupCollator(tokenizer, padding="longest", pad_to_multiple_of=8)([dataset[row] for row in range(8)])


def make_trainer():
    """A trainer that has only what its steps read: transformers' own would place the model on a real device."""
    from gainRAG.selector_finetune.trainer import SelectorTrainer

    trainer = object.__new__(SelectorTrainer)
    trainer.args = SimpleNamespace(device=META, teacher_temperature=1.0)
    trainer.is_deepspeed_enabled = False
    return trainer


@each("dtype", [torch.float16, torch.bfloat16])
@each("checkpointing", [False, True])
@each("weights", ["float32", "half"])
def test_training_step(monkeypatch, dtype, checkpointing, weights):
    """With float32 weights under autocast, as transformers trains, and with weights in half, as DeepSpeed does."""
    # the trainer's mask has two dimensions, of which transformers reads whether anything is padded: yes
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *_, **__: False)
    pytest.importorskip("FlagEmbedding")
    from gainRAG.selector_finetune.modeling import DistilledCrossEncoder
    from gainRAG.selector_finetune.trainer import ranking_metrics

    tokenizer = pair_tokenizer()
    autocast, stored = (dtype, torch.float32) if weights == "float32" else (None, dtype)
    base = make_meta(AutoModelForSequenceClassification, BASE, stored)
    model = DistilledCrossEncoder(base, tokenizer).train()
    if checkpointing:
        again = {
            "use_reentrant": False,
            "context_fn": lambda: (nullcontext(), Gpu(autocast)),
        }
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-5)
    trainer = make_trainer()
    inputs = trainer._prepare_inputs(make_batch(tokenizer))
    words = BASE.vocab_size * BASE.hidden_size  # of the embedding's gradient and the optimiser's two moments
    with Watch(dtype, BASE.vocab_size, words) as watch:
        with Gpu(autocast):
            loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        metrics = ranking_metrics(outputs.scores.detach(), inputs["teacher_scores"])
    assert inputs["pair"]["input_ids"].shape[0] == 7 * 16 + 4 and inputs["teacher_scores"].dtype == torch.float32
    assert (loss.dtype, loss.shape, outputs.scores.shape) == (torch.float32, (), (8, 16))
    assert all(weight.grad.dtype == weight.dtype and weight.grad.is_meta for weight in model.parameters())
    assert (metrics.dtype, trainer._spread.device) == (torch.float32, META)
    per_layer = 7 + 12 + 7 * checkpointing  # six layers and attention; two gradients for each layer; the former again
    assert watch.products > per_layer * BASE.num_hidden_layers
