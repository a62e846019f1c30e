"""What every engine is, and several behind one set of options: what a stage needs to have an LLM write."""

import argparse
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gainRAG.common.cli import UserError, fraction, non_negative_float, non_negative_int, positive_float, positive_int
from gainRAG.common.models import (
    DTYPES,
    dtype_name,
    generation_dtype,
    is_chat_model,
    longest_input,
    pick_device,
    pick_dtype,
    weights_path,
)
from gainRAG.common.parallel import WorkerOptions
from gainRAG.common.settings import identity
from gainRAG.evaluation.answers import without_thoughts
from gainRAG.llm_inference.build_prompts import PROMPT_DATE, PromptBuilder
from gainRAG.llm_inference.written_text import THOUGHT, TROUBLES, opens_thought
from gainRAG.prompts import load_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

BACKENDS = ("hf", "vllm", "openai")


@dataclass(frozen=True)
class EngineOptions:
    """Which LLM writes, and what runs it: the flags of `add_engine_arguments` under the same names."""

    lm_type: str
    backend: str = "hf"
    dtype: str = "auto"
    device: str | None = None
    max_batch_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 42
    max_model_len: int = 16384
    tensor_parallel_size: int | None = None
    gpu_memory_utilization: float | None = None
    base_url: str | None = None
    server_model: str | None = None
    concurrency: int = 8
    request_timeout: float = 300.0
    retries: int = 6
    no_template_kwargs: bool = False
    keep_refused: bool = False

    @property
    def model_name(self) -> str:
        """The LLM as results name it."""
        return f"{self.server_model} at {self.base_url}" if self.backend == "openai" else self.lm_type


@dataclass(frozen=True)
class GenerationOptions:
    """How the LLM is asked, and how long it may write.

    Attributes:
        task: whose prompt; a key of `prompts.TASKS` or of the prompts file.
        prompts: a YAML file that replaces texts shown to the LLM, `reference` for the shipped one, or None.
        chat: whether prompts go through the tokenizer's chat template.
        max_new_tokens: the longest text, in tokens.
    """

    task: str
    prompts: str | None = None
    chat: bool = True
    max_new_tokens: int = 32


class Engine(ABC):
    """An LLM that continues prompts; its kinds share how texts are finished, and the count of those that went wrong.

    Args:
        chat: whether prompts have a chat template; without one a text ends where its first part does.

    Attributes:
        tokenizer: the LLM's, or None where a server tokenises.
        context_length: the most tokens of prompt and answer together, or None where unknown.
        troubles: for each prompt of the last call what went wrong, a key of TROUBLES, or "" where the text is whole.
        trouble_counts: the same of all calls.
    """

    tokenizer: "PreTrainedTokenizerBase | None" = None
    context_length: int | None = None

    def __init__(self, chat: bool) -> None:
        self.chat = chat
        self.troubles: list[str] = []
        self.trouble_counts: Counter[str] = Counter()

    @abstractmethod
    def generate(self, prompts: Sequence[str], max_new_tokens: int, end: str = "\n") -> list[str]:
        """One continuation a prompt, in the prompts' order, stripped of white space.

        Args:
            prompts: full texts of `PromptBuilder`.
            max_new_tokens: the longest continuation, in tokens.
            end: where a base model's text ends, which would run on; a chat model's ends by itself.
        """

    def finish(
        self, prompts: Sequence[str], written: Mapping[str, str], end: str, troubles: Mapping[str, str]
    ) -> list[str]:
        """The texts of a call's prompts as they count; fills in `troubles`.

        Args:
            written: prompt -> what the LLM wrote.
            end: where the text of a base model ends.
            troubles: prompt -> what the engine itself knows to be wrong. That a base model was cut behind the end of
                its text is no trouble.
        """
        found = {prompt: self._finish_one(prompt, text, end) for prompt, text in written.items()}
        if not self.chat:
            troubles = {prompt: name for prompt, name in troubles.items() if end not in written[prompt]}
        texts = [found[prompt][0] for prompt in prompts]
        self.troubles = [THOUGHT if found[prompt][1] else troubles.get(prompt, "") for prompt in prompts]
        self.trouble_counts.update(filter(None, self.troubles))
        return texts

    def _finish_one(self, prompt: str, text: str, end: str) -> tuple[str, bool]:
        text, unfinished = without_thoughts(text, self.chat and opens_thought(prompt))
        return text if self.chat else text.partition(end)[0].rstrip(), unfinished

    def close(self) -> None:
        """Frees the model's memory; warns of texts that went wrong."""
        for trouble, count in self.trouble_counts.items():
            logger.warning(TROUBLES[trouble], count)
        self.trouble_counts.clear()


def add_engine_arguments(parser: argparse.ArgumentParser, backends: Sequence[str] = BACKENDS) -> None:
    """The flags that choose the LLM, where it runs, and how it writes; the first of `backends` is the default."""
    group = parser.add_argument_group("language model")
    group.add_argument("--lm_type", default="Llama-3-8B-Instruct", help="the LLM: a known name, a folder or a hub id")
    group.add_argument("--backend", choices=backends, default=backends[0], help="what runs the LLM")
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="number format of the LLM's weights; auto: bfloat16 if native, else float32",
    )
    group.add_argument(
        "--device",
        default=None,
        help="cpu, cuda or cuda:N (vLLM: the visible GPUs); None: the first GPU, else the CPU. An LLM that it "
        "has no room for is shared among all visible GPUs, unless cuda:N is named",
    )
    group.add_argument(
        "--max_batch_tokens",
        type=positive_int,
        default=None,
        help="tokens (prompts and answers, padding included) in one batch of the hf engine; None: 16384, and 131072 "
        "while a GPU of 40 GiB or more writes",
    )
    group.add_argument("--temperature", type=non_negative_float, default=0.0, help="0 decodes greedily, as the paper")
    group.add_argument("--seed", type=non_negative_int, default=42, help="seed of sampling (temperature above 0)")
    group.add_argument("--no_chat", action="store_true", help="do not use the chat template, whatever the model")
    group.add_argument(
        "--prompts",
        default=None,
        metavar="FILE.yaml",
        help="replaces texts shown to the LLM; reference: the structure of the published code",
    )
    if "vllm" in backends:
        _add_vllm_arguments(parser)
    if "openai" in backends:
        _add_server_arguments(parser)


def _add_vllm_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("language model behind vLLM")
    group.add_argument(
        "--max_model_len",
        type=positive_int,
        default=16384,
        help="longest prompt and answer in tokens, where the LLM's context is longer",
    )
    group.add_argument(
        "--tensor_parallel_size",
        type=positive_int,
        default=None,
        help="GPUs that share the LLM; None: 1, or as many as its weights need (workers are quicker)",
    )
    group.add_argument(
        "--gpu_memory_utilization",
        type=fraction,
        default=None,
        help="fraction of each GPU's memory for weights and cache; None: 0.9 (without a GPU: 0.2 of the RAM)",
    )


def _add_server_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("language model behind --backend openai (its key: environment OPENAI_API_KEY)")
    group.add_argument("--base_url", default=None, metavar="URL", help="the server, e.g. http://127.0.0.1:8000/v1")
    group.add_argument("--server_model", default=None, metavar="NAME", help="the model's name on that server")
    group.add_argument("--concurrency", type=positive_int, default=8, help="most requests at one time")
    group.add_argument(
        "--request_timeout", type=positive_float, default=300.0, help="seconds of silence that fail an attempt"
    )
    group.add_argument("--retries", type=non_negative_int, default=6, help="attempts after a failed one")
    group.add_argument(
        "--keep_refused",
        action="store_true",
        help="count a prompt that the server refuses (400, 413, 422: it is too long, or its content is) as answered by "
        "nothing; without it the first one ends the run, which may be given again with it",
    )
    group.add_argument(
        "--no_template_kwargs",
        action="store_true",
        help="leave chat_template_kwargs, which turn thinking off, out of requests: some servers refuse them",
    )


def engine_options(**flags) -> EngineOptions:
    """From the parsed flags (`**vars(args)`) those of `add_engine_arguments`; others than the backends' keep their
    defaults."""
    names = EngineOptions.__dataclass_fields__
    return EngineOptions(**{name: value for name, value in flags.items() if name in names})


def generation_options(
    *, lm_type: str, task: str, prompts: str | None, no_chat: bool, max_new_tokens: int = 32, **_
) -> GenerationOptions:
    """From the parsed flags (`**vars(args)`) those that say how the LLM is asked."""
    return GenerationOptions(task, prompts, is_chat_model(lm_type) and not no_chat, max_new_tokens)


def check_engine(engine: EngineOptions) -> None:
    """Finds user errors before a model loads; `lengths.LengthCheck` finds those in the LLM's tokenizer and prompts.

    Raises:
        UserError: no such device, backend package or server address.
    """
    pick_device(engine.device)
    if engine.backend == "openai":
        from gainRAG.llm_inference.inference_openai import check_server_arguments

        check_server_arguments(engine.base_url, engine.server_model)
    if engine.backend == "vllm":
        from gainRAG.llm_inference.inference_vllm import require_vllm

        require_vllm()


def context_length(engine: EngineOptions) -> int | None:
    """The most tokens of prompt and answer together, by the LLM's configuration; None where unknown, as at a server."""
    if engine.backend == "openai":
        return None
    from gainRAG.llm_inference.inference_hf import load_config

    longest = longest_input(load_config(engine.lm_type))
    return min(engine.max_model_len, longest or engine.max_model_len) if engine.backend == "vllm" else longest


def load_engine(options: EngineOptions, generation: GenerationOptions) -> Engine:
    """The engine that the options describe, for prompts as `generation` asks for them."""
    if options.backend == "vllm":
        from gainRAG.llm_inference.inference_vllm import VLLMEngine

        return VLLMEngine(options, generation.chat)
    if options.backend == "openai":
        from gainRAG.llm_inference.inference_openai import OpenAIEngine

        return OpenAIEngine(options, load_prompts(generation.prompts).system)
    from gainRAG.llm_inference.inference_hf import HFEngine

    return HFEngine(options, generation.chat)


class Writer:
    """The LLM and the prompts that fit its context; the workers (common.parallel) that have it write are kinds of this.

    Args:
        reserved_tokens: as `prompt_builder` takes them; None: what the LLM may write.
    """

    def __init__(
        self, engine: EngineOptions, generation: GenerationOptions, reserved_tokens: int | None = None
    ) -> None:
        self.max_new_tokens = generation.max_new_tokens
        reserved = self.max_new_tokens if reserved_tokens is None else reserved_tokens
        self.engine = load_engine(engine, generation)
        self.builder = prompt_builder(engine, generation, self.engine.tokenizer, self.engine.context_length, reserved)

    def close(self) -> None:
        """Frees the model's memory; tells how many texts went wrong, and how many prompts were cut."""
        self.engine.close()
        self.builder.report_cuts()


def prompt_builder(
    engine: EngineOptions,
    generation: GenerationOptions,
    tokenizer: "PreTrainedTokenizerBase | None",
    context_length: int | None,
    reserved_tokens: int,
) -> PromptBuilder:
    """The prompts of a task for an LLM, leaving `reserved_tokens` of its context for what follows.

    Raises:
        UserError: the context has no room for a prompt.
    """
    prompts = load_prompts(generation.prompts)
    limit = None if context_length is None else context_length - reserved_tokens
    if limit is not None and limit < 1:
        raise UserError(
            f"{engine.lm_type}: its context of {context_length} tokens leaves no room beside {reserved_tokens} new ones"
        )
    return PromptBuilder(prompts, prompts.task(generation.task), tokenizer, generation.chat, limit)


def writing_workers(engine: EngineOptions, workers: WorkerOptions) -> WorkerOptions:
    """How a stage's writing is spread: a server is asked by one process, --concurrency is for that."""
    return replace(workers, num_workers=1) if engine.backend == "openai" else workers


def generation_settings(engine: EngineOptions, generation: GenerationOptions) -> dict:
    """What changes the texts an engine writes, their length apart, for a stage's settings.

    Weights by content: a folder of the same name may hold others by the time a run resumes. Batch sizes and the device
    are left out, since they change last digits only (docs/determinism.md) and a run that died of its batches must
    resume with smaller ones; but batches that share a seed also share what it draws.
    """
    settings = {name: getattr(engine, name) for name in ("backend", "dtype", "temperature", "seed")}
    settings |= {"chat": generation.chat, "task": generation.task, "prompts": load_prompts(generation.prompts).hash()}
    if engine.backend == "openai":
        return {**settings, "server_model": engine.server_model, "template_kwargs": not engine.no_template_kwargs}
    if generation.chat:
        settings["prompt_date"] = str(PROMPT_DATE)
    settings["weights"] = identity(weights_path(engine.lm_type))
    if engine.backend == "vllm":
        settings["max_model_len"] = engine.max_model_len
    if engine.backend == "hf":
        device = pick_device(engine.device)
        settings["dtype"] = dtype_name(pick_dtype(generation_dtype(engine.dtype, device), device))
        if engine.temperature:
            settings["max_batch_tokens"] = engine.max_batch_tokens
    return settings
