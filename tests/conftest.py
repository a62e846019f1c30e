"""Tiny models with random weights, of the real shapes, and a small tokenizer trained on made-up text."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import functools
import inspect
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import fork_server
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

REPOSITORY = Path(__file__).resolve().parents[1]
slow = pytest.mark.skipif("CHAOS_KILLS" not in os.environ, reason="takes long; scripts/chaos.sh runs it")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SENTENCES = [
    "Paris is the capital of France and lies on the river Seine.",
    "Berlin is the capital of Germany, a country in central Europe.",
    "The Nile is a river in Africa; it flows through Egypt to the sea.",
    "Marie Curie won the Nobel Prize in physics in 1903 and in chemistry in 1911.",
    "Who wrote the play Hamlet? William Shakespeare wrote Hamlet around 1600.",
    "Mount Everest is the highest mountain on Earth, 8849 metres above the sea.",
    "Answer the question from the passage. Question: what is the capital? Answer:",
    "The question asks for a city, a person, a year or a place; say only the answer.",
]


def each(names: str | tuple[str, ...], cases: Iterable, ids=None) -> Callable:
    """As pytest.mark.parametrize, but one test: for tables of small cases that share their fixtures (each has its own
    tmp_path, and of a fixture with a method `fresh` its own)."""
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    cases = list(cases)

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def run_all(**fixtures) -> None:
            for number, case in enumerate(cases):
                own = dict(zip(names, case if len(names) > 1 else [case], strict=True))
                if "tmp_path" in fixtures:
                    own["tmp_path"] = fixtures["tmp_path"] / str(number)
                    own["tmp_path"].mkdir()
                own |= {name: found.fresh(number) for name, found in fixtures.items() if hasattr(found, "fresh")}
                try:
                    function(**{**fixtures, **own})
                except BaseException as failure:
                    failure.add_note(f"the case of {', '.join(names)}: {case!r:.500}")
                    raise

        parameters = inspect.signature(function).parameters
        kept = [parameter for name, parameter in parameters.items() if name not in names]
        run_all.__signature__ = inspect.Signature(kept)
        del run_all.__wrapped__
        return run_all

    return decorate


class RunsWhenUnpickled:
    """Unpickled by an ordinary loader, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def killed_at_record(module: str, record: int, before: str = "") -> str:
    """A script that runs a stage, as if by its own command, and dies of SIGKILL when it would write a record.

    Args:
        module: the stage's full name; the script knows it as `stage`.
        record: which, counted from 1.
        before: statements to run first.
    """
    return f"""
import importlib, os, signal
from gainRAG.common import resume
stage = importlib.import_module("{module}")
{before}
line_of, count = resume.line_of, 0
def dies(record):
    global count
    count += 1
    if count == {record}:
        os.kill(os.getpid(), signal.SIGKILL)
    return line_of(record)
resume.line_of = dies
stage.main()
"""


def byte_level_tokenizer(special_tokens: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer: no text is unknown to it, whatever the script."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def causal_tokenizer():
    """A tokenizer with chat template, pad and end tokens, as a causal LM's folder holds it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]),
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
    )


def pair_tokenizer():
    """XLM-RoBERTa's kind: a unigram vocabulary, laid out <s> first </s></s> second </s>."""
    from transformers import XLMRobertaTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(SENTENCES, trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    return XLMRobertaTokenizerFast(vocab=[(token, score) for token, score in vocabulary], model_max_length=512)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Folder of a Llama-shaped causal LM: 2 layers, hidden size 32, random weights, float32."""
    return _llama(tmp_path_factory.mktemp("llama"), num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="session")
def vllm_llama(tmp_path_factory) -> Path:
    """As `tiny_llama`, with heads of 32: vLLM's attention on a CPU takes none smaller."""
    return _llama(tmp_path_factory.mktemp("vllm_llama"), num_attention_heads=2, num_key_value_heads=1, head_dim=32)


def _llama(folder: Path, **heads: int) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = causal_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.2,
        **heads,
    )
    return _saved(folder, LlamaForCausalLM(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory) -> Path:
    """Folder of an XLM-RoBERTa cross-encoder with one logit, as bge-reranker: 514 positions, 512 usable."""
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    torch.manual_seed(0)
    tokenizer = pair_tokenizer()
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    return _saved(tmp_path_factory.mktemp("reranker"), XLMRobertaForSequenceClassification(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """Folder of a BERT encoder, as Contriever and MiniLM: WordPiece, 2 layers, hidden size 32."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        [sentence.lower() for sentence in SENTENCES], trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    )
    tokenizer = BertTokenizerFast(vocab=tokenizer.get_vocab(), do_lower_case=True)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    return _saved(tmp_path_factory.mktemp("encoder"), BertModel(config), tokenizer)


def cross_encoder_of(kind: str, folder: Path, **changes) -> Path:
    """Folder of a cross-encoder as other families have them: a Qwen2 classifier without a configured padding token, a
    GPT-2 without any, RoBERTa weights (no token types) with a BERT tokenizer."""
    import transformers

    torch.manual_seed(0)
    end = "<|endoftext|>"
    if kind == "RoBERTa":
        words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        words.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
        tokenizer = transformers.BertTokenizerFast(vocab=words.get_vocab())
        sizes = {"max_position_embeddings": 130, "type_vocab_size": 1, "intermediate_size": 64}
    else:
        pad = {"pad_token": end} if kind == "Qwen2" else {}
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=byte_level_tokenizer([end]), eos_token=end, **pad
        )
        sizes = {"Qwen2": {"intermediate_size": 64, "num_key_value_heads": 2}, "GPT2": {"n_positions": 128}}[kind]
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 1}
    shape |= {"vocab_size": len(tokenizer), "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
    shape |= {"pad_token_id": 0 if kind == "RoBERTa" else None}
    config = getattr(transformers, f"{kind}Config".replace("RoBERTa", "Roberta"))(**{**shape, **sizes, **changes})
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    return _saved(folder, model, tokenizer)


def _saved(folder: Path, model, tokenizer) -> Path:
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def forked_python(tmp_path_factory):
    """The variable with which bash scripts run their Python commands in forks of one that has imported everything."""
    with fork_server.running(tmp_path_factory.mktemp("forks")) as variable:
        yield variable


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes records to a .jsonl file in the test's folder and gives its path."""

    def write(name: str, records: list[dict]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
        return path

    return write


@pytest.fixture
def read_jsonl():
    """Reads a .jsonl file as a list."""
    return lambda path: [json.loads(line) for line in Path(path).open("rb")]


@contextmanager
def files_no_longer_than(size: int):
    """The operating system's own refusal to write on, for this process."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="session")
def own_mounts() -> list[str]:
    """What starts a command in a name space where it may mount file systems: no other process sees them, and they go
    with the command."""
    alone = ["unshare", "--map-root-user", "--mount"]
    mount = ["bash", "-c", "mount -t tmpfs -o size=64k tmpfs /tmp"]
    if not shutil.which("unshare") or subprocess.run([*alone, *mount], capture_output=True).returncode:
        pytest.skip("no unshare, or it may not mount file systems here")
    return alone


@pytest.fixture
def run_python():
    """Runs `python ARGUMENTS` in a folder of the repository and gives the finished process."""

    def run(*arguments, folder: str = ".", env: dict | None = None, timeout: float = 300):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=REPOSITORY / folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
