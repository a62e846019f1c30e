"""The vLLM engine, run for real where vLLM is installed, against transformers in float32."""

import importlib.metadata
import importlib.util
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY, SENTENCES
from doubles import Dying
from tokenizers.processors import TemplateProcessing

from gainRAG.common.cli import UserError
from gainRAG.common.parallel import WorkerOptions, map_chunks
from gainRAG.llm_inference import inference_vllm
from gainRAG.llm_inference.engine import EngineOptions
from gainRAG.llm_inference.inference_hf import HFEngine
from gainRAG.llm_inference.inference_vllm import VLLMEngine, needed_shares, require_vllm

try:
    require_vllm()
    installed = True
except UserError:
    installed = False
needs_vllm = pytest.mark.skipif(not installed, reason="vLLM is not installed")

PROMPTS = [f"<|user|>\n{sentence}<|end|>\n<|assistant|>\n" for sentence in SENTENCES]
UNEQUAL = [*PROMPTS, PROMPTS[0], " ".join(SENTENCES), "Who wrote", "Zoë et Ångström; 東京は日本の首都です。"]


def engine_processes() -> list[int]:
    """This process's children that vLLM named, those that run."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"VLLM::")]


@pytest.fixture(scope="module")
def engine(vllm_llama):
    engine = VLLMEngine(EngineOptions(str(vllm_llama), dtype="float32"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(vllm_llama):
    return HFEngine(EngineOptions(str(vllm_llama), device="cpu", dtype="float32"))


def test_absence_is_told_with_what_to_install(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(UserError, match=r'vLLM is not installed.*pip install "gainRAG\[vllm\]"'):
        require_vllm()


@pytest.mark.skipif(installed, reason="vLLM is installed")
def test_a_stage_ends_with_that_line(run_python, write_jsonl, tiny_llama):
    data = write_jsonl("data.jsonl", [{"id": "1", "question": "who?", "answers": ["he"], "ctxs": []}])
    command = ["-m", "gainRAG.rag_workflow.rag_generation", "--data_path", data, "--task", "NaturalQA"]
    run = run_python(*command, "--backend", "vllm", "--lm_type", tiny_llama)
    assert run.returncode == 2
    assert "vLLM is not installed" in run.stderr.splitlines()[-1]


@needs_vllm
def test_greedy_text_equals_transformers(engine, reference):
    assert engine.generate(UNEQUAL, 12) == reference.generate(UNEQUAL, 12)


@needs_vllm
def test_a_longer_prompt_than_before_is_no_reason_to_start_again(engine, reference):
    engine.generate(["short"], 1)
    started = engine._llm
    longer = [" ".join(SENTENCES * 5)]
    assert engine.generate(longer, 12) == reference.generate(longer, 12)
    assert engine._llm is started


@needs_vllm
def test_the_context_is_the_models_or_what_is_asked_for(engine, vllm_llama):
    assert engine.context_length == 2048
    short = VLLMEngine(EngineOptions(str(vllm_llama), max_model_len=64))
    assert short.context_length == 64
    with pytest.raises(UserError, match="context of 64 tokens is shorter than .* 513 together.*--max_model_len"):
        short.answer_log_probabilities([([1] * 500, [1] * 12)])


@needs_vllm
def test_a_base_model_gets_the_start_token_and_its_answer_is_the_first_line(engine, reference, monkeypatch):
    end = engine.tokenizer.convert_tokens_to_ids("<|end|>")
    start = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", end)])
    plain = engine.generate(PROMPTS, 12)
    for one in (engine, reference):
        monkeypatch.setattr(one, "chat", False)
        monkeypatch.setattr(one.tokenizer.backend_tokenizer, "post_processor", start)
    assert engine.generate(PROMPTS, 12) == reference.generate(PROMPTS, 12) != plain
    shown = []
    monkeypatch.setattr(engine, "_run", lambda rows, **_: shown.extend(rows) or [])
    with pytest.raises(ValueError):
        engine.generate(PROMPTS[:1], 12)
    assert shown[0][0] == end


@needs_vllm
def test_thoughts_are_left_out(engine, monkeypatch):
    texts = ["Lyon?</think> Marseille", "<think> Lyon", "Lyon"]
    rows = engine.tokenizer(texts, add_special_tokens=False).input_ids
    ends = ["stop", "stop", "length"]
    written = [SimpleNamespace(token_ids=row, finish_reason=end) for row, end in zip(rows, ends, strict=True)]
    monkeypatch.setattr(engine, "_run", lambda rows, **_: [SimpleNamespace(outputs=[one]) for one in written])
    assert engine.generate(["a", "b", "c"], 12) == ["Marseille", "", "Lyon"]
    assert engine.troubles == ["", "thought", "length"]


@needs_vllm
def test_no_prompts(engine):
    assert engine.generate([], 12) == []


@needs_vllm
def test_more_than_the_model_holds_is_refused(engine):
    with pytest.raises(UserError, match="context of 2048 tokens is shorter"):
        engine.generate(["short"], 2048)


@needs_vllm
def test_heads_that_cannot_be_shared_are_refused(vllm_llama):
    with pytest.raises(UserError, match="2 attention heads"):
        VLLMEngine(EngineOptions(str(vllm_llama), tensor_parallel_size=3))


def test_an_llm_is_shared_only_where_one_gpu_does_not_hold_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 10**9))
    for weights, shares in ((16 * 10**9, 1), (141 * 10**9, 4)):  # 8B, and 70B: three would hold it, 64 heads want four
        monkeypatch.setattr(inference_vllm, "weight_bytes", lambda *_, weights=weights: weights)
        assert needed_shares(EngineOptions("any", dtype="bfloat16"), heads=64) == shares


@needs_vllm
def test_answer_log_probabilities_equal_log_softmax(engine, reference):
    tokenizer = engine.tokenizer
    answers = ["Paris", "Paris, France", "東京", "a"]
    cases = [
        (tokenizer(prompt, add_special_tokens=False).input_ids, tokenizer(answer, add_special_tokens=False).input_ids)
        for prompt in PROMPTS[:3]
        for answer in answers
    ]
    for (prompt, answer), found in zip(cases, engine.answer_log_probabilities(cases), strict=True):
        with torch.no_grad():
            logits = reference.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1)[range(len(answer)), answer]
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-4, atol=1e-4)


@needs_vllm
def test_sampling_repeats_by_seed_whatever_runs_beside(engine, monkeypatch):
    monkeypatch.setattr(engine, "options", replace(engine.options, temperature=1.0))
    alone = engine.generate(PROMPTS[:1], 12)
    assert engine.generate(PROMPTS, 12)[:1] == alone
    monkeypatch.setattr(engine, "options", replace(engine.options, seed=8))
    assert engine.generate(PROMPTS[:1], 12) != alone


@needs_vllm
def test_closing_ends_the_process(engine):
    engine.generate(PROMPTS[:1], 1)
    assert engine_processes()
    engine.close()
    assert not engine_processes()
    engine.close()


@needs_vllm
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
def test_a_killed_ray_worker_leaves_no_engine_behind(vllm_llama, reference, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "tests"), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WRITERS", str(tmp_path))  # every process that comes of this test has it
    writer = partial(Dying, "doubles", "VLLMWriter", tmp_path / "killed", str(vllm_llama))
    chunks = [[prompt] for prompt in PROMPTS[:6]]
    try:
        found = list(map_chunks(writer, chunks, WorkerOptions(num_workers=2, device="cpu")))
    finally:
        importlib.import_module("ray").shutdown()
    assert (tmp_path / "killed").exists()
    assert found == [reference.generate(chunk, 12) for chunk in chunks]
    left = [pid for pid in Path("/proc").glob("[0-9]*") if f"WRITERS={tmp_path}" in read(pid / "environ")]
    # A worker itself, "ray::_Actor", may take a moment longer to end on a busy machine.
    assert not [pid for pid in left if read(pid / "cmdline").startswith("VLLM::")]


def read(file: Path) -> str:
    """A file of /proc; empty for a process that has ended or is another's."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
