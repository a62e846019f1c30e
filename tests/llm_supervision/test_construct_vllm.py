"""Plain perplexities by vLLM: the records' making against exact numbers, and the stage run for real where it can be."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY, SENTENCES

from gainRAG.common.cli import UserError
from gainRAG.llm_inference.build_prompts import PromptBuilder
from gainRAG.llm_inference.inference_hf import load_causal_lm, load_tokenizer
from gainRAG.llm_inference.inference_vllm import require_vllm
from gainRAG.llm_supervision.construct_vllm import add_perplexities
from gainRAG.llm_supervision.gain import GainRequest, GainScorer
from gainRAG.prompts import load_prompts

try:
    require_vllm()
    installed = True
except UserError:
    installed = False

ANSWERS = [["Paris"], ["Egypt", "東京", "Egypt", "the Nile"], ["Marie Curie", "Curie"]]


def question(number: int) -> dict:
    passages = [
        {"id": str(rank), "title": f"Title {rank}", "text": SENTENCES[(number + rank) % 8], "score": 1.0 - rank}
        for rank in range(3)
    ]
    return {"id": str(number), "question": f"who or where is {number}?", "answers": ANSWERS[number], "ctxs": passages}


@pytest.fixture(scope="module")
def parts(vllm_llama):
    """Prompts and an exact scorer of the LLM."""
    tokenizer = load_tokenizer(str(vllm_llama))
    model = load_causal_lm(str(vllm_llama), torch.device("cpu"), "float32")
    prompts = load_prompts(None)
    return PromptBuilder(prompts, prompts.task("NaturalQA"), tokenizer), GainScorer(model, tokenizer)


def exact(parts, record: dict, passages: list[dict]) -> list[float]:
    builder, scorer = parts
    prompts = [builder.with_passages(record, [passage]) for passage in passages]
    (gains,) = scorer.score([GainRequest(builder.without_passage(record), prompts, record["answers"])])
    return [gain.ppl for gain in gains]


class ExactEngine:
    """Answers' log-probabilities by one plain forward a case, in place of vLLM's."""

    def __init__(self, builder: PromptBuilder, model) -> None:
        self.tokenizer = builder.tokenizer
        self.model = model

    @torch.inference_mode()
    def answer_log_probabilities(self, cases):
        found = []
        for prompt, answer in cases:
            logits = self.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            found.append(logits.log_softmax(-1)[range(len(answer)), answer].tolist())
        return found


def test_lowest_perplexity_over_the_answers_goes_to_its_own_passage(parts, vllm_llama):
    engine = ExactEngine(parts[0], load_causal_lm(str(vllm_llama), torch.device("cpu"), "float32"))
    chunk = [{**question(number), "passages": question(number)["ctxs"][: number + 1]} for number in range(3)]
    chunk.append({**question(0), "passages": []})
    add_perplexities(engine, parts[0], chunk)
    for record in chunk[:3]:
        found = [passage["retrieved_ppl"] for passage in record["passages"]]
        assert found == pytest.approx(exact(parts, record, record["passages"]), rel=1e-4)


def test_without_a_chat_template_the_stages_agree(vllm_llama):
    tokenizer, prompts = load_tokenizer(str(vllm_llama)), load_prompts(None)
    model = load_causal_lm(str(vllm_llama), torch.device("cpu"), "float32")
    builder = PromptBuilder(prompts, prompts.task("NaturalQA"), tokenizer, chat=False)
    record = {**question(1), "passages": question(1)["ctxs"]}
    add_perplexities(ExactEngine(builder, model), builder, [record])
    parts = builder, GainScorer(model, tokenizer, chat=False)
    assert [p["retrieved_ppl"] for p in record["passages"]] == pytest.approx(exact(parts, record, record["passages"]))
    assert builder.with_passages(record, record["passages"][:1]).endswith(":")


def command(data, output, lm_type) -> list[str]:
    command = [sys.executable, "-m", "gainRAG.llm_supervision.construct_vllm", "--data_path", data, "--task"]
    return [*map(str, command), "NaturalQA", "--output_path", str(output), "--lm_type", str(lm_type)]


@pytest.mark.skipif(installed, reason="vLLM is installed")
def test_absence_of_vllm_is_told_in_a_line(run_python, write_jsonl, tmp_path, vllm_llama):
    data = write_jsonl("data.jsonl", [question(0)])
    run = run_python(*command(data, tmp_path / "out.jsonl", vllm_llama)[1:])
    assert run.returncode == 2
    assert "vLLM is not installed" in run.stderr.splitlines()[-1]


@pytest.mark.skipif(not installed, reason="vLLM is not installed")
def test_a_killed_and_resumed_run_gives_the_scorers_perplexities(
    run_python, write_jsonl, read_jsonl, tmp_path, parts, vllm_llama
):
    records = [{**question(number % 3), "id": str(number)} for number in range(130)]
    data = write_jsonl("data.jsonl", records)
    output = tmp_path / "out.jsonl"
    flags = ["--dtype", "float32", "--num_passages", "2", "--max_new_tokens", "4", "--background_tokens", "8"]
    process = subprocess.Popen([*command(data, output, vllm_llama), *flags], cwd=REPOSITORY, start_new_session=True)
    unfinished = output.with_name("out.jsonl.unfinished")
    while process.poll() is None and not (unfinished.exists() and unfinished.stat().st_size):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = [json.loads(line) for line in unfinished.read_bytes().splitlines()]
    run = run_python(*command(data, output, vllm_llama)[1:], *flags)
    assert run.returncode == 0, run.stderr
    assert "resumes after" in run.stderr
    finished = read_jsonl(output)
    assert [record["id"] for record in finished] == [record["id"] for record in records]
    assert finished[: len(kept)] == kept
    for record in [*finished[:3], *finished[-3:]]:
        assert [passage["is_pseudo"] for passage in record["passages"]] == [False, False, True]
        assert all("PPL_CD" not in passage and "EM_with_retrieval" in passage for passage in record["passages"])
        found = [passage["retrieved_ppl"] for passage in record["passages"]]
        assert found == pytest.approx(exact(parts, record, record["passages"]), rel=1e-3)
