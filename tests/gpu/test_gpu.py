"""What only a GPU can show: half precision against float32, other programs' results, DeepSpeed, several GPUs, vLLM, and
memory that runs out. scripts/test_gpu.sh runs these; without CUDA each says that it is skipped. With
GAINRAG_TEST_DEVICE=cpu those that a CPU can run do so there, which tries the tests themselves."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES

from gainRAG.common import models
from gainRAG.llm_inference.engine import EngineOptions
from gainRAG.llm_inference.inference_hf import HFEngine, load_causal_lm, load_tokenizer
from gainRAG.llm_supervision.gain import GainRequest, GainScorer
from gainRAG.retrieval_engine.exact_search import faiss_knns, search_chunk
from gainRAG.retrieval_engine.modeling import Encoder, EncoderOptions
from gainRAG.selector_engine.selector import Selector

DEVICE = os.environ.get("GAINRAG_TEST_DEVICE", "cuda")
ON_GPU = DEVICE != "cpu"
GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(ON_GPU and not GPUS, reason="no CUDA GPU")
needs_cuda = pytest.mark.skipif(not ON_GPU, reason="only a GPU shows this")
needs_two = pytest.mark.skipif(GPUS < 2, reason=f"needs 2 GPUs, {GPUS} found")
HALF = ["bfloat16", "float16"]
PROMPTS = [f"<|user|>\n{sentence}<|end|>\n<|assistant|>\n" for sentence in SENTENCES]


def needs(*packages: str):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def log_gains(folder, dtype: str, device: str = DEVICE) -> np.ndarray:
    """log PPL_CD of some passages, (questions x passages,)."""
    model = load_causal_lm(str(folder), torch.device(device), dtype)
    scorer = GainScorer(model, load_tokenizer(str(folder)))
    requests = [GainRequest(prompt, PROMPTS[:4], ["Paris", "Paris, France", "1903"]) for prompt in PROMPTS[4:]]
    return np.log([gain.ppl_cd for gains in scorer.score(requests) for gain in gains])


def test_gains_in_float32_are_the_cpus(tiny_llama):
    np.testing.assert_allclose(log_gains(tiny_llama, "float32"), log_gains(tiny_llama, "float32", "cpu"), rtol=1e-3)


@pytest.mark.parametrize("dtype", HALF)
def test_gains_in_half_precision_are_near_float32(tiny_llama, dtype):
    exact, half = log_gains(tiny_llama, "float32"), log_gains(tiny_llama, dtype)
    assert np.abs(half - exact).max() < 0.1 * np.ptp(exact)
    assert np.corrcoef(half, exact)[0, 1] > 0.99


@needs("FlagEmbedding")
def test_the_selector_scores_as_flag_embedding(tiny_reranker):
    from FlagEmbedding import FlagReranker

    pairs = [(question, passage) for question in SENTENCES[:3] for passage in SENTENCES]
    selector = Selector(str(tiny_reranker), device=DEVICE)
    other = FlagReranker(str(tiny_reranker), use_fp16=ON_GPU, devices="cuda:0" if ON_GPU else "cpu", max_length=512)
    np.testing.assert_allclose(selector.score(pairs), other.compute_score(pairs), atol=2e-2 if ON_GPU else 1e-4)


@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_vectors_are_those_of_a_cpu_in_float32(tiny_encoder, dtype):
    texts = [sentence * (1 + place % 5) for place, sentence in enumerate(SENTENCES * 9)]
    exact = Encoder(EncoderOptions(str(tiny_encoder), device="cpu", dtype="float32")).encode(texts)
    found = Encoder(EncoderOptions(str(tiny_encoder), device=DEVICE, dtype=dtype, batch_size=5)).encode(texts)
    np.testing.assert_allclose(found, exact, atol={"float32": 1e-3}.get(dtype, 0.1))


@needs("faiss")
def test_exact_search_keeps_the_first_of_equal_passages():
    import faiss

    if ON_GPU and not getattr(faiss, "get_num_gpus", int)():
        pytest.skip("this faiss sees no GPU: faiss-gpu is not installed")
    draw = np.random.default_rng(0)
    vectors = draw.integers(-2, 3, (5000, 8)).astype("float16")  # exact in any order of adding, and full of ties
    queries = draw.integers(-2, 3, (20, 8)).astype("float32")
    knn, buffer = faiss_knns()[0], np.empty((5000, 8), "float32")
    floor = np.full(20, -np.inf, "float32")
    scores, positions = search_chunk((knn, buffer), queries, vectors, np.arange(5000), 30, floor)
    order = np.argsort(-(queries @ vectors.astype("float32").T), axis=1, kind="stable")[:, :30]
    assert [set(row) for row in positions] == [set(row) for row in order]
    assert np.array_equal(scores, np.take_along_axis(queries @ vectors.astype("float32").T, order, axis=1))


@needs("FlagEmbedding")
@pytest.mark.parametrize("dtype", HALF)
def test_a_training_step_in_half_precision_is_near_float32(tiny_reranker, dtype):
    loss, gradient = training_step(tiny_reranker, None)
    half_loss, half_gradient = training_step(tiny_reranker, models.DTYPES[dtype])
    assert half_loss == pytest.approx(loss, rel=0.05)
    assert torch.cosine_similarity(half_gradient, gradient, dim=0) > 0.98


def training_step(folder, dtype: torch.dtype | None) -> tuple[float, torch.Tensor]:
    """The loss of 2 groups of 4 pairs, and its gradient."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from gainRAG.selector_finetune.modeling import DistilledCrossEncoder

    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(folder)
    model = DistilledCrossEncoder(base, tokenizer).to(DEVICE).eval()  # without dropout
    pair = tokenizer(SENTENCES[:1] * 8, SENTENCES, padding=True, return_tensors="pt").to(DEVICE)
    teacher = torch.tensor([[-0.7, -2.0, -3.0, -5.0], [-1.0, -1.5, -4.0, -6.0]], device=DEVICE)
    with torch.autocast(DEVICE, dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(dict(pair), teacher, torch.ones(2, device=DEVICE)).loss
    (loss * 1024).backward()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return loss.item(), torch.cat(gradients).float().cpu() / 1024


@pytest.fixture
def steady_reranker(tiny_reranker, tmp_path) -> Path:
    """Without dropout, which every process draws for itself."""
    folder = shutil.copytree(tiny_reranker, tmp_path / "steady")
    config = json.loads((folder / "config.json").read_text())
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps({**config, **none}))
    return folder


def train(run_python, folder, output, processes: int, *flags) -> np.ndarray:
    """Trains a tiny selector through torchrun on 8 questions; returns its scores of the first passages."""
    groups = [
        {"query": f"{one} {number}", "pos": [SENTENCES[number]], "neg": SENTENCES[number + 1 :], "pos_scores": [-0.7],
         "neg_scores": [-2.0 - place for place in range(7 - number)]}
        for number in range(4) for one in ("what", "who")
    ]  # fmt: skip
    data = output.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(group) + "\n" for group in groups))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, "-m", "selector_finetune"]
    command = ["--model_name_or_path", folder, "--train_data", data, "--output_dir", output, "--save_strategy", "no"]
    command += ["--train_group_size", 4, "--per_device_train_batch_size", 4 // processes, "--num_train_epochs", 2]
    run = run_python(*launch, *command, "--learning_rate", "1e-3", *flags, folder="gainRAG", timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    selector = Selector(str(output), device="cpu", dtype="float32")
    return selector.score([("what 0", sentence) for sentence in SENTENCES])


@needs_cuda
@needs("FlagEmbedding", "deepspeed")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_learns_as_without(steady_reranker, run_python, tmp_path, stage):
    alone = train(run_python, steady_reranker, tmp_path / "alone", 1, "--fp16")
    flags = ["--fp16", "--deepspeed", f"../deepspeed/ds_stage{stage}.json"]
    found = train(run_python, steady_reranker, tmp_path / "deepspeed", 1, *flags)
    assert np.corrcoef(found, alone)[0, 1] > 0.9


@needs("FlagEmbedding")
@pytest.mark.skipif(ON_GPU and GPUS < 2, reason=f"needs 2 GPUs, {GPUS} found")
def test_two_processes_learn_as_one(steady_reranker, run_python, tmp_path):
    one = train(run_python, steady_reranker, tmp_path / "one", 1)
    two = train(run_python, steady_reranker, tmp_path / "two", 2)
    assert np.corrcoef(two, one)[0, 1] > 0.99


@needs_cuda
@needs_two
@needs("accelerate")
def test_two_gpus_that_share_a_model_give_its_gains(tiny_llama, monkeypatch):
    whole = log_gains(tiny_llama, "float32")
    monkeypatch.setattr(models, "WEIGHTS_SHARE", 0.0)
    placed = models.placement(torch.device("cuda"), lambda: 1)
    assert placed == {"device_map": "auto"}
    monkeypatch.setattr("gainRAG.llm_inference.inference_hf.placement", lambda *_: {"device_map": "balanced"})
    np.testing.assert_allclose(log_gains(tiny_llama, "float32"), whole, rtol=1e-4)


@needs("vllm")
def test_vllm_writes_what_hf_writes(vllm_llama):
    from gainRAG.llm_inference.inference_vllm import VLLMEngine

    engine = VLLMEngine(EngineOptions(str(vllm_llama), dtype="float32", gpu_memory_utilization=0.3))
    try:
        written = engine.generate(PROMPTS, 12)
    finally:
        engine.close()
    assert written == HFEngine(EngineOptions(str(vllm_llama), device=DEVICE, dtype="float32")).generate(PROMPTS, 12)


@needs_cuda
def test_memory_that_runs_out_halves_the_batches(tiny_encoder):
    texts = [" ".join(SENTENCES * 4)] * 3000
    encoder = Encoder(EncoderOptions(str(tiny_encoder), device=DEVICE, dtype="float32", batch_size=3000))
    expected = encoder.encode(texts[:1])[0]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (128 << 20)) / total)
    try:
        vectors = encoder.encode(texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert encoder.budget.tokens is not None
    np.testing.assert_allclose(vectors, np.broadcast_to(expected, vectors.shape), atol=1e-3)
