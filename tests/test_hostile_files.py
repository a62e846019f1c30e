"""Files that would run code if they could: model folders with Python of their own, weights that are pickles, texts that
look like patterns. (Pickled embeddings: retrieval_engine/test_vectors.py; pages: analysis/test_tables.py; keys:
llm_inference/test_inference_openai.py; damaged files of every kind: test_fuzz.py.)"""

import ast
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, RunsWhenUnpickled, each

from gainRAG.common.cli import UserError
from gainRAG.evaluation.answers import accuracy
from gainRAG.llm_inference.inference_hf import load_causal_lm, load_tokenizer
from gainRAG.retrieval_engine.modeling import Encoder, EncoderOptions, encoder_dim
from gainRAG.selector_engine.selector import Selector, check_selector

SOURCES = [path for folder in ("gainRAG", "data") for path in sorted((REPOSITORY / folder).rglob("*.py"))]
RUNS_CODE = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "torch.load", "yaml.load"}
RUNS_CODE |= {"joblib.load", "marshal.loads", "yaml.unsafe_load"}


def calls() -> Iterator[tuple[str, str, dict[str, ast.expr]]]:
    """(where, what, keywords) of every call in the sources."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
                yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", ast.unparse(node.func), keywords


def test_no_loader_of_models_runs_their_code():
    loaders = [(where, what, keywords) for where, what, keywords in calls() if what.endswith("from_pretrained")]
    assert len(loaders) > 10
    for where, what, keywords in loaders:
        if what != "PeftModel.from_pretrained":  # an adapter has no code, and this is the repository's own
            assert ast.unparse(keywords.get("trust_remote_code", ast.Constant(None))) == "False", where
    assert not [where for where, what, keywords in calls() if what == "np.load" and "allow_pickle" not in keywords]


def test_no_text_becomes_a_command_or_code():
    for where, what, keywords in calls():
        assert what not in RUNS_CODE, where
        assert "shell" not in keywords, where
    for script in (REPOSITORY / "scripts").glob("*.sh"):
        assert not [
            line for line in script.read_text("utf-8").splitlines() if line.split("#")[0].split()[:1] == ["eval"]
        ]


@pytest.fixture
def witness(tmp_path) -> Path:
    """A folder that only hostile code makes."""
    return tmp_path / "it_ran"


LOADERS = {
    "tiny_llama": [load_tokenizer, lambda name: load_causal_lm(name, torch.device("cpu"), "float32")],
    "tiny_encoder": [encoder_dim, lambda name: Encoder(EncoderOptions(name, device="cpu"))],
    "tiny_reranker": [check_selector, lambda name: Selector(name, device="cpu")],
}


@pytest.mark.parametrize("model", LOADERS)
def test_a_model_folders_own_code_is_not_run(request, tmp_path, witness, monkeypatch, model):
    folder = shutil.copytree(request.getfixturevalue(model), tmp_path / "model")
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(witness)!r})\n")
    automatic = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {name: f"own.{name}" for name in automatic}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    for load in LOADERS[model]:
        with pytest.raises(UserError, match=f"^{folder}: cannot be loaded: "):
            load(str(folder))
    assert not witness.exists()


@pytest.mark.parametrize("model", LOADERS)
def test_pickled_weights_load_and_run_nothing(request, tmp_path, witness, model):
    from safetensors.torch import load_file

    folder = shutil.copytree(request.getfixturevalue(model), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    load = LOADERS[model][1]
    torch.save(weights, folder / "pytorch_model.bin")
    load(str(folder))
    for hostile in ({**weights, "more": RunsWhenUnpickled(witness)}, RunsWhenUnpickled(witness)):
        torch.save(hostile, folder / "pytorch_model.bin")
        with pytest.raises(UserError, match=f"^{folder}: cannot be loaded: "):
            load(str(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(RunsWhenUnpickled(witness)))
    with pytest.raises(UserError, match=f"^{folder}: cannot be loaded: "):
        load(str(folder))
    assert not witness.exists()
    pickle.loads(pickle.dumps(RunsWhenUnpickled(witness)))
    assert witness.exists()  # the trap works


@each("label", [".*", "(", "a|b", "[A-Z]", "\\d", "(a+)+$"])
def test_an_options_label_is_no_pattern(label):
    assert accuracy(f"It is {label}.", [label], [label, "B"])
    assert not accuracy("It is C.", [label], [label, "B"])
