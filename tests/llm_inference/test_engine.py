"""What stages remember of their LLM: everything that changes what it writes, and nothing else."""

import argparse
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from gainRAG.llm_inference.engine import (
    EngineOptions,
    GenerationOptions,
    add_engine_arguments,
    engine_options,
    generation_options,
    generation_settings,
    load_engine,
)
from gainRAG.prompts import load_prompts


@pytest.fixture
def model(tiny_llama, tmp_path):
    """A folder of the tiny LLM that a test may change."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


@pytest.fixture
def settings(model):
    """The settings of some flags for the LLM of `model`."""

    def of(*flags, task="HotpotQA"):
        parser = argparse.ArgumentParser()
        add_engine_arguments(parser)
        arguments = ["--lm_type", model, "--device", "cpu", *flags]
        args = parser.parse_args(list(map(str, arguments)), argparse.Namespace(task=task))
        return generation_settings(engine_options(**vars(args)), generation_options(**vars(args)))

    return of


@pytest.mark.parametrize("backend", ["hf", "vllm"])
def test_changed_weights_under_the_same_name_change_them(settings, model, backend):
    before = settings("--backend", backend)
    assert settings("--backend", backend) == before
    changed = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight[3, 5] += 0.1
    changed.save_pretrained(model)
    after = settings("--backend", backend)
    assert after.pop("weights") != before.pop("weights")
    assert after == before


def test_a_hub_id_is_known_by_its_name_and_a_server_by_its_models(settings):
    assert settings("--lm_type", "nobody/model")["weights"] == "nobody/model"
    server = ["--backend", "openai", "--base_url", "http://127.0.0.1:1/v1", "--server_model"]
    assert "weights" not in settings(*server, "a", "--lm_type", "no weights here")
    assert settings(*server, "a") != settings(*server, "b")


def test_the_spelling_of_a_path_and_the_host_of_a_server_are_left_out(settings, model, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert settings("--lm_type", "./model") == settings("--lm_type", model)
    hosts = [
        settings("--backend", "openai", "--server_model", "a", "--base_url", f"http://{host}/v1", "--lm_type", name)
        for host, name in (("here", "one/model"), ("there:1", "other"))
    ]
    assert hosts[0] == hosts[1]


def test_a_server_gets_the_system_text_and_thinking_turned_off():
    server = EngineOptions("", "openai", base_url="http://127.0.0.1:1/v1", server_model="a")
    engine = load_engine(server, GenerationOptions("HotpotQA", "reference"))
    assert engine._system == [{"role": "system", "content": load_prompts("reference").system}]
    assert engine._request["chat_template_kwargs"]["enable_thinking"] is False
    plain = load_engine(replace(server, no_template_kwargs=True), GenerationOptions("HotpotQA"))
    assert plain._system == []
    assert "chat_template_kwargs" not in plain._request


def test_the_date_of_prompts_is_remembered_where_a_template_may_show_it(settings):
    assert settings()["prompt_date"] == "2024-07-26"
    assert "prompt_date" not in settings("--no_chat")


def test_flags_that_change_last_digits_only_are_left_out(settings):
    assert settings("--max_batch_tokens", 7) == settings()
    assert settings("--dtype", "auto") == settings("--dtype", "float32") != settings("--dtype", "bfloat16")
    assert settings("--seed", 1) != settings() != settings("--no_chat") != settings(task="WebQuestions")


def test_batches_that_share_a_seed_count_when_texts_are_drawn(settings):
    warm = ["--temperature", 0.5, "--max_batch_tokens"]
    assert settings(*warm, 7) != settings(*warm, 8)
