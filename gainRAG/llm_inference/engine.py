"""One interface, several engines: what a stage needs to have an LLM write."""

import argparse
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from gainRAG.cli import UserError, non_negative_float, non_negative_int, positive_float, positive_int, share
from gainRAG.llm_inference.build_prompts import PromptBuilder, require_chat_template
from gainRAG.llm_inference.models import DTYPES, is_chat_model, pick_device, pick_dtype, weights_path, writing_dtype
from gainRAG.prompts import load_prompts
from gainRAG.records import identity
from gainRAG.workers import Chunk, Result, Worker, map_chunks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

BACKENDS = ("hf", "vllm", "openai")


class Engine(Protocol):
    """An LLM that continues prompts.

    Attributes:
        tokenizer: the LLM's, or None where a server tokenises.
        context_length: the most tokens of prompt and answer together, or None where unknown.
    """

    tokenizer: "PreTrainedTokenizerBase | None"
    context_length: int | None

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """One continuation a prompt, in the prompts' order, stripped of white space."""

    def close(self) -> None:
        """Frees the model's memory."""


def add_engine_arguments(parser: argparse.ArgumentParser, backends: Sequence[str] = BACKENDS) -> None:
    """The flags that say which LLM writes, on what, and how; the first of `backends` is the default."""
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
        "--device", default=None, help="cpu, cuda or cuda:N (vLLM: the visible GPUs); None: the first GPU, else the CPU"
    )
    group.add_argument(
        "--max_batch_tokens",
        type=positive_int,
        default=16384,
        help="tokens (prompts and answers, padding included) in one batch of the hf engine",
    )
    group.add_argument("--temperature", type=non_negative_float, default=0.0, help="0 decodes greedily, as the paper")
    group.add_argument("--seed", type=non_negative_int, default=42, help="seed of sampling (temperature above 0)")
    group.add_argument("--no_chat", action="store_true", help="do not use the chat template, whatever the model")
    group.add_argument("--prompts", default=None, metavar="FILE.yaml", help="replaces texts shown to the LLM")
    if "vllm" in backends:
        _add_vllm_arguments(parser)
    if "openai" in backends:
        _add_server_arguments(parser)


def _add_vllm_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("language model behind vLLM")
    group.add_argument(
        "--tensor_parallel_size",
        type=positive_int,
        default=None,
        help="GPUs that share the LLM; None: all visible ones that can",
    )
    group.add_argument(
        "--gpu_memory_utilization",
        type=share,
        default=None,
        help="share of each GPU's memory for weights and cache; None: 0.9 (without a GPU: 0.2 of the RAM)",
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


def check_engine_arguments(args: argparse.Namespace) -> None:
    """Finds the user's mistakes before a model loads.

    Raises:
        UserError: no such weights, device, backend package, server address, task or prompt file; no chat template.
    """
    load_prompts(args.prompts).task(args.task)
    pick_device(args.device)
    if args.backend == "openai":
        from gainRAG.llm_inference.inference_openai import check_server_arguments

        check_server_arguments(args.base_url, args.server_model)
        return
    if args.backend == "vllm":
        from gainRAG.llm_inference.inference_vllm import require_vllm

        require_vllm()
    check_tokenizer(args)


def check_tokenizer(args: argparse.Namespace) -> None:
    """Finds out, in about a second, whether the LLM of the flags can be given prompts: loads its tokenizer alone.

    Raises:
        UserError: no such weights, no usable tokenizer, or a chat model whose tokenizer has no chat template.
    """
    from gainRAG.llm_inference.inference_hf import load_tokenizer

    tokenizer = load_tokenizer(args.lm_type)
    if uses_chat(args):
        require_chat_template(tokenizer)


def uses_chat(args: argparse.Namespace) -> bool:
    """Whether prompts go through the chat template of the LLM of the flags."""
    return is_chat_model(args.lm_type) and not args.no_chat


def load_engine(args: argparse.Namespace) -> Engine:
    """The engine that the flags of `add_engine_arguments` describe."""
    if args.backend == "vllm":
        from gainRAG.llm_inference.inference_vllm import VLLMEngine

        return VLLMEngine(
            args.lm_type,
            dtype=args.dtype,
            temperature=args.temperature,
            seed=args.seed,
            tensor_parallel_size=args.tensor_parallel_size,
            gpu_memory_utilization=args.gpu_memory_utilization,
        )
    if args.backend == "openai":
        from gainRAG.llm_inference.inference_openai import OpenAIEngine

        return OpenAIEngine(
            args.base_url,
            args.server_model,
            concurrency=args.concurrency,
            timeout=args.request_timeout,
            retries=args.retries,
            temperature=args.temperature,
            seed=args.seed,
        )
    from gainRAG.llm_inference.inference_hf import HFEngine

    return HFEngine(
        args.lm_type,
        device=args.device,
        dtype=args.dtype,
        max_batch_tokens=args.max_batch_tokens,
        temperature=args.temperature,
        seed=args.seed,
    )


def map_texts(args: argparse.Namespace, make_worker: Callable[[], Worker], chunks: Iterable[Chunk]) -> Iterator[Result]:
    """`workers.map_chunks` for workers with an engine. A server is asked by one: --concurrency is for that."""
    if args.backend == "openai":
        args = argparse.Namespace(**{**vars(args), "num_workers": 1})
    return map_chunks(args, make_worker, chunks)


def prompt_builder(
    args: argparse.Namespace, tokenizer: "PreTrainedTokenizerBase | None", context_length: int | None, room: int
) -> PromptBuilder:
    """The prompts of `args.task` for the LLM of the flags, leaving `room` tokens of the context for the answer.

    Raises:
        UserError: the context has no room for a prompt.
    """
    prompts = load_prompts(args.prompts)
    limit = None if context_length is None else context_length - room
    if limit is not None and limit < 1:
        raise UserError(f"{args.lm_type}: its context of {context_length} tokens leaves no room beside {room} new ones")
    return PromptBuilder(prompts, prompts.task(args.task), tokenizer, uses_chat(args), limit)


def model_name(args: argparse.Namespace) -> str:
    """The LLM that writes, as results name it."""
    return f"{args.server_model} at {args.base_url}" if args.backend == "openai" else args.lm_type


def generation_settings(args: argparse.Namespace) -> dict:
    """What of the flags changes the texts an engine writes, for a stage's settings.

    Weights by content: a folder of the same name may hold others by the time a run goes on. Batch sizes and the device
    are left out, since they change last digits only (README, Determinism) and a run that died of its batches must go
    on with smaller ones; but batches that share a seed also share what it draws.
    """
    names = ["lm_type", "backend", "dtype", "temperature", "seed", "no_chat", "task"]
    settings = {name: getattr(args, name) for name in names}
    if args.backend == "openai":
        settings |= {"base_url": args.base_url, "server_model": args.server_model}
    else:
        settings["weights"] = identity(weights_path(args.lm_type))
    if args.backend == "hf":
        device = pick_device(args.device)
        settings["dtype"] = str(pick_dtype(writing_dtype(args.dtype, device), device)).removeprefix("torch.")
        if args.temperature:
            settings["max_batch_tokens"] = args.max_batch_tokens
    return {**settings, "prompts": load_prompts(args.prompts).hash()}
