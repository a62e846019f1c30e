"""The server engine: any OpenAI-compatible chat completions, from vLLM's or llama.cpp's server to a hosted one.

The server applies its own chat template, and is asked to turn thinking off in it. The key comes from OPENAI_API_KEY
alone, and appears in no log, setting or error.
"""

import email.utils
import logging
import math
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gainRAG.common.cli import UserError
from gainRAG.common.progress import ProgressBar
from gainRAG.llm_inference.build_prompts import PROMPT_DATE
from gainRAG.llm_inference.engine import Engine, EngineOptions
from gainRAG.llm_inference.written_text import EMPTY, FILTERED, LENGTH, REFUSED, THOUGHT

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

FIRST_DELAY = 1.0  # seconds before the second attempt; doubles with each further one
LONGEST_DELAY = 60.0
LONGEST_RETRY_AFTER = 600.0  # a server that is away for longer ends the run
RETRIED_STATUS = {408, 409, 425, 429}  # and all from 500
PROMPT_STATUS = {400, 413, 422}  # by which servers refuse a prompt that is too long, or its content
TEMPLATE_KWARGS = {"enable_thinking": False, "date_string": PROMPT_DATE.strftime("%d %b %Y")}


def check_server_arguments(base_url: str | None, server_model: str | None) -> None:
    """Checks the server's address and key before a request is sent.

    Raises:
        UserError: an argument is missing, the address is not one, or it holds what may be a key.
    """
    if not base_url or not server_model:
        missing = "--server_model" if base_url else "--base_url"
        raise UserError(
            f"--backend openai needs {missing}, e.g. --base_url http://127.0.0.1:8000/v1 --server_model NAME"
        )
    try:
        parts = urlsplit(base_url)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        complete = False
    if not complete:
        raise UserError("--base_url is no address; wanted one like http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError("--base_url must hold no user name, password or query; give the key in OPENAI_API_KEY")
    _key()


def _key() -> str:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key.isascii() or not key.isprintable():
        raise UserError("OPENAI_API_KEY holds characters that no key has; copy it again")
    return key


class _TryAgain(Exception):
    """An attempt failed in a way that may pass; `after` is how long the server asks to wait, in seconds."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class OpenAIEngine(Engine):
    """Generation by a server's `/chat/completions`, one user message a prompt.

    A prompt that occurs several times is asked once. Rate limits (429), server errors, time-outs, dropped connections
    and malformed answers are tried again, after a longer pause each time. When a prompt fails for good, the engine
    waits for the running requests, sends no other, and keeps the answers: the same call again asks only for the
    missing ones.

    Args:
        options: its `base_url` goes up to and with `/v1`.
        system: the text of a system message before each prompt; "" for none.

    Raises:
        UserError: the address or the key cannot be right.
    """

    def __init__(self, options: EngineOptions, system: str = "") -> None:
        import httpx

        super().__init__(chat=True)
        check_server_arguments(options.base_url, options.server_model)
        self.options = options
        self.base_url = options.base_url.rstrip("/")
        self._request = {"model": options.server_model, "temperature": options.temperature}
        if options.temperature:
            self._request["seed"] = options.seed
        if not options.no_template_kwargs:
            self._request["chat_template_kwargs"] = TEMPLATE_KWARGS
        self._system = [{"role": "system", "content": system}] if system else []
        self._limit_name = "max_tokens"
        self._key = _key()
        timeout = options.request_timeout
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 30.0), pool=None),
            limits=httpx.Limits(max_connections=options.concurrency),
        )
        self._received: dict[tuple[str, int], tuple[str, str]] = {}
        self._stop = threading.Event()

    def generate(self, prompts: Sequence[str], max_new_tokens: int, end: str = "\n") -> list[str]:
        """One continuation a prompt, in order.

        Raises:
            UserError: the server refuses the key or a prompt, or a prompt gets no answer; names the prompt.
        """
        cases = [(prompt, max_new_tokens) for prompt in prompts]
        missing = [case for case in dict.fromkeys(cases) if case not in self._received]
        self._stop.clear()
        with ThreadPoolExecutor(self.options.concurrency) as pool:
            futures = {pool.submit(self._answer, *case): case for case in missing}
            self._collect(futures)
        received, self._received = self._received, {}
        texts = {prompt: received[prompt, max_new_tokens][0] for prompt in prompts}
        troubles = {prompt: received[prompt, max_new_tokens][1] for prompt in prompts}
        return self.finish(prompts, texts, end, troubles)

    def _collect(self, futures: dict[Future, tuple[str, int]]) -> None:
        failure: UserError | None = None
        try:
            for future in ProgressBar(
                as_completed(futures), "asking the server", len(futures), leave=False, unit="prompt"
            ):
                try:
                    answer = future.result()
                except UserError as problem:
                    failure = failure or problem
                    continue
                if answer is not None:
                    self._received[futures[future]] = answer
        except BaseException:
            self._stop.set()
            raise
        if failure:
            raise failure

    def _answer(self, prompt: str, max_new_tokens: int) -> tuple[str, str] | None:
        """The server's answer and its trouble, or None when another prompt's failure has ended the call."""
        for attempt in range(self.options.retries + 1):
            if self._stop.is_set():
                return None
            try:
                return self._ask(prompt, max_new_tokens)
            except UserError:
                self._stop.set()
                raise
            except _TryAgain as problem:
                if attempt == self.options.retries:
                    self._stop.set()
                    raise self._failure(prompt, f"no answer in {attempt + 1} attempts, the last: {problem}") from None
                delay = max(problem.after, random.uniform(0.5, 1.0) * min(LONGEST_DELAY, FIRST_DELAY * 2**attempt))
                logger.warning("%s: %s; asking again in %.1f s", self.base_url, self._hide_key(str(problem)), delay)
                self._stop.wait(delay)
        return None

    def _ask(self, prompt: str, max_new_tokens: int) -> tuple[str, str]:
        import httpx

        limit = self._limit_name
        messages = [*self._system, {"role": "user", "content": prompt}]
        body = {**self._request, limit: max_new_tokens, "messages": messages}
        try:
            response = self._client.post(f"{self.base_url}/chat/completions", json=body)
        except httpx.RequestError as problem:
            raise _TryAgain(str(problem) or type(problem).__name__) from None
        if response.status_code in (401, 403):
            hint = "check OPENAI_API_KEY" if self._key else "OPENAI_API_KEY is not set"
            raise UserError(self._hide_key(f"{self.base_url} refuses the key: {hint} ({_refusal(response)})"))
        if response.status_code in RETRIED_STATUS or response.status_code >= 500:
            after = _retry_after(response.headers.get("Retry-After", ""))
            if after > LONGEST_RETRY_AFTER:
                raise self._failure(prompt, f"{_refusal(response)}, asks to come back in {after:.0f} s")
            raise _TryAgain(_refusal(response), after)
        if not response.is_success and limit == "max_tokens" and _wants_other_limit(_refusal(response)):
            self._limit_name = "max_completion_tokens"
            return self._ask(prompt, max_new_tokens)
        if not response.is_success:
            hint = "; --no_template_kwargs leaves it out" if "chat_template_kwargs" in _refusal(response) else ""
            if response.status_code in PROMPT_STATUS and not hint:
                if self.options.keep_refused:
                    return "", REFUSED
                hint = "; --keep_refused counts such prompts as answered by nothing"
            raise self._failure(prompt, f"refused, {_refusal(response)}{hint}")
        return _read_answer(response)

    def _failure(self, prompt: str, reason: str) -> UserError:
        shown = prompt if len(prompt) <= 120 else f"{prompt[:60]} ... {prompt[-60:]}"
        return UserError(self._hide_key(f"{self.base_url}: {reason}; prompt {shown!r}"))

    def _hide_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def close(self) -> None:
        """Closes the connections; warns of texts that went wrong."""
        super().close()
        self._client.close()


def _read_answer(response: "httpx.Response") -> tuple[str, str]:
    """The answer's text in a chat completion, and its trouble: a key of `written_text.TROUBLES`, or ""."""
    try:
        choice = response.json()["choices"][0]
        message = choice["message"]
        text = _join_parts(message["content"])
        reason = choice.get("finish_reason")
        thought = message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _TryAgain(f"no chat completion came but {response.text!r:.200}") from None
    if reason == FILTERED:
        return text, FILTERED
    if not text.strip():
        return "", THOUGHT if thought else LENGTH if reason == LENGTH else EMPTY
    return text, LENGTH if reason == LENGTH else ""


def _join_parts(content: str | list | None) -> str:
    """A message's content as one text; parts that are no text, such as thoughts, are left out."""
    if isinstance(content, list):
        content = "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    if not isinstance(content, str | None):
        raise TypeError
    return content or ""


def _wants_other_limit(refusal: str) -> bool:
    """Whether a server refuses `max_tokens` itself, as newer models of hosted servers do, and not its value."""
    refused = ("unsupported", "not supported", "unrecognized", "unknown", "deprecated", "max_completion_tokens")
    return "max_tokens" in refusal and any(word in refusal.lower() for word in refused)


def _refusal(response: "httpx.Response") -> str:
    """Status and message of a refusal, on one line."""
    try:
        said = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = response.text
    return f"{response.status_code} {response.reason_phrase}: {' '.join(str(said).split()):.300}".rstrip(": ")


def _retry_after(header: str) -> float:
    """Seconds to wait by a Retry-After header: a number of seconds or a date; 0 without a usable one."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
