"""The transformers engine: left-padded batches, sorted by length, on a CPU or a GPU."""

import gc
from collections.abc import Sequence
from functools import partial

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gainRAG.common.batching import CPU_LLM_TOKENS, LLM_TOKENS, BatchBudget, decoding_tokens
from gainRAG.common.cli import UserError
from gainRAG.common.models import (
    explain_load_errors,
    generation_dtype,
    input_device,
    longest_input,
    pick_device,
    pick_dtype,
    placement,
    weights_path,
)
from gainRAG.common.packed_linear import pack_linear_layers
from gainRAG.common.progress import ProgressBar
from gainRAG.llm_inference.build_prompts import encode_prompts
from gainRAG.llm_inference.decoding import decode_greedily, share_heads, takes_masks
from gainRAG.llm_inference.engine import Engine, EngineOptions
from gainRAG.llm_inference.written_text import LENGTH, decode_texts


def load_tokenizer(lm_type: str):
    """The LLM's tokenizer, with a padding token.

    Raises:
        UserError: unknown name, a tokenizer that cannot be had, or one that cannot pad.
    """
    with explain_load_errors(lm_type):
        tokenizer = AutoTokenizer.from_pretrained(weights_path(lm_type), trust_remote_code=False)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise UserError(
            f"{lm_type}: its tokenizer has neither a padding nor an end token; name one in its tokenizer's files"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(lm_type: str):
    """The LLM's configuration.

    Raises:
        UserError: unknown name, or a configuration that cannot be had.
    """
    with explain_load_errors(lm_type):
        return AutoConfig.from_pretrained(weights_path(lm_type), trust_remote_code=False)


def load_causal_lm(lm_type: str, device: torch.device, dtype: str):
    """The LLM on its device, or shared among the GPUs where one has no room for it, in evaluation mode.

    Raises:
        UserError: unknown name, weights that cannot be had, or some of them missing, as an encoder's LM head.
    """
    number_format = pick_dtype(dtype, device)
    with explain_load_errors(lm_type):
        model, found = AutoModelForCausalLM.from_pretrained(
            weights_path(lm_type),
            dtype=number_format,
            trust_remote_code=False,
            output_loading_info=True,
            **placement(device, partial(weight_bytes, lm_type, number_format)),
        )
    if missing := sorted(found["missing_keys"]):  # tied weights are not among them
        raise UserError(
            f"{lm_type}: its weights lack {len(missing)} tensors of a causal LM, {missing[0]} first, which would be "
            "random; wanted an LLM that writes, no encoder, cross-encoder or unfinished copy"
        )
    shared = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    return model.eval() if shared else pack_linear_layers(model.to(device).eval())


def weight_bytes(lm_type: str, dtype: torch.dtype) -> int:
    """What the LLM's weights take, by its configuration."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(lm_type), dtype=dtype, trust_remote_code=False)
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def end_tokens(generation_config, tokenizer) -> list[int] | None:
    """The tokens that end a text: the model's own, and the tokenizer's, which some models' settings leave out."""
    ends = generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    return sorted(ends - {None}) or None


class HFEngine(Engine):
    """Greedy decoding of our own where the model takes our masks, else transformers' `generate`.

    A prompt that occurs several times is continued once. Memory that runs out halves the batches from then on.
    """

    def __init__(self, options: EngineOptions, chat: bool = True) -> None:
        super().__init__(chat)
        device = pick_device(options.device)
        self.tokenizer = load_tokenizer(options.lm_type)
        self.tokenizer.padding_side = "left"
        self.model = load_causal_lm(options.lm_type, device, generation_dtype(options.dtype, device))
        self.device = input_device(self.model)
        self.context_length = longest_input(self.model.config)
        ends = end_tokens(self.model.generation_config, self.tokenizer)
        # A checkpoint's own settings may also advise sampling, penalties or tokens to suppress, which change the texts.
        self.model.generation_config = GenerationConfig(
            eos_token_id=ends, pad_token_id=self.tokenizer.pad_token_id, use_cache=True
        )
        self.budget = BatchBudget(decoding_tokens(options.max_batch_tokens, self.device))
        self.prefill_tokens = CPU_LLM_TOKENS if self.device.type == "cpu" else LLM_TOKENS
        self.decodes_greedily = not options.temperature and takes_masks(self.model)
        if self.decodes_greedily:
            share_heads(self.model)
        self.options = options

    def generate(self, prompts: Sequence[str], max_new_tokens: int, end: str = "\n") -> list[str]:
        """One continuation a prompt, in order.

        Raises:
            torch.OutOfMemoryError: one prompt alone does not fit.
        """
        distinct = list(dict.fromkeys(prompts))
        ids = encode_prompts(self.tokenizer, distinct, self.chat)
        lengths = [len(row) + max_new_tokens for row in ids]
        texts: dict[str, str] = {}
        ends = set(self.model.generation_config.eos_token_id or [])
        cut: set[str] = set()

        def forward(batch: list[int]) -> list[list[int]]:
            return self._continue([ids[index] for index in batch], max_new_tokens, ends)

        with ProgressBar(total=len(distinct), desc="generating", unit="prompt", leave=False) as progress:
            for batch, written in self.budget.run(lengths, forward):
                names = [distinct[index] for index in batch]
                texts |= zip(names, decode_texts(self.tokenizer, written), strict=True)
                cut |= {name for name, row in zip(names, written, strict=True) if ends.isdisjoint(row)}
                progress.update(len(batch))
        return self.finish(prompts, texts, end, dict.fromkeys(cut, LENGTH))

    @torch.inference_mode()
    def _continue(self, rows: list[list[int]], max_new_tokens: int, ends: set[int]) -> list[list[int]]:
        if self.decodes_greedily and takes_masks(self.model, max(map(len, rows)) + max_new_tokens):
            return decode_greedily(self.model, rows, max_new_tokens, ends, self.prefill_tokens)
        batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.device)
        temperature = self.options.temperature
        sampling = {"temperature": temperature} if temperature else {}
        torch.manual_seed(self.options.seed)  # per batch: what one batch draws does not depend on those before it
        output = self.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            top_k=None,
            top_p=None,
            do_sample=bool(sampling),
            **sampling,
        )
        return output[:, batch.input_ids.shape[1] :].tolist()

    def close(self) -> None:
        """Frees the model's memory; warns of texts that went wrong."""
        super().close()
        self.model = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
