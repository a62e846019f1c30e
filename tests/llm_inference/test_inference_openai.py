"""The server engine against a real HTTP server on this machine that misbehaves as told."""

import email.utils
import json
import logging
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import each

from gainRAG.common.cli import UserError
from gainRAG.llm_inference import inference_openai
from gainRAG.llm_inference.engine import EngineOptions
from gainRAG.llm_inference.inference_openai import OpenAIEngine, check_server_arguments

KEY = "sk-secret-4711"


class Server(ThreadingHTTPServer):
    """Answers `answer to PROMPT`, after misbehaving as `plans[PROMPT]` says, one action a request.

    An action is a status, `(status, Retry-After)`, `(status, Retry-After, body)`, a body (bytes), or "drop", "cut",
    "silence" and "slow".
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.plans: dict[str, list] = {}
        self.always: object = None
        self.key: str | None = None
        self.bodies: list[dict] = []
        self.times: dict[str, list[float]] = defaultdict(list)
        self.lock = threading.Lock()
        self.now = self.most = 0

    def prompts(self) -> Counter:
        return Counter(body["messages"][0]["content"] for body in self.bodies)

    def handle_error(self, request, client_address) -> None:
        pass  # a client that gave up is part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            self._respond()
        finally:
            with self.server.lock:
                self.server.now -= 1

    def _respond(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.times[prompt].append(time.monotonic())
            plan = self.server.plans.get(prompt)
            action = plan.pop(0) if plan else self.server.always
        if self.path != "/v1/chat/completions":
            return self._send(404, b"no such path")
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            said = {"error": {"message": f"Incorrect API key: {self.headers.get('Authorization')}"}}
            return self._send(401, json.dumps(said).encode())
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": f" answer to {prompt}\n"}}]})
        match action:
            case "drop":
                self.close_connection = True
            case "cut":
                self._send(200, answer.encode()[:20], length=len(answer))
                self.close_connection = True
            case "silence":
                time.sleep(1.5)
                self.close_connection = True
            case bytes():
                self._send(200, action)
            case int():
                self._send(action, b'{"error": {"message": "as told"}}')
            case (status, after, said):
                self._send(status, said, after=after)
            case (status, after):
                self._send(status, b"busy", after=after)
            case _:
                time.sleep(0.1 if action == "slow" else 0)
                self._send(200, answer.encode())

    def _send(self, status: int, content: bytes, length: int | None = None, after: str | None = None) -> None:
        self.send_response(status)
        if after:
            self.send_header("Retry-After", after)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(inference_openai, "FIRST_DELAY", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def make_engine(server):
    engines = []

    def make(system="", **flags) -> OpenAIEngine:
        flags = {"request_timeout": 5.0, "retries": 3, **flags}
        options = EngineOptions("", "openai", base_url=server.url, server_model="the-model", **flags)
        engines.append(OpenAIEngine(options, system))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def answers(prompts: list[str]) -> list[str]:
    return [f"answer to {prompt}" for prompt in prompts]


def test_answers_come_in_order_however_slow_some_are(server, make_engine):
    prompts = [f"question {number}" for number in range(20)]
    server.plans = {prompt: ["slow"] for prompt in prompts[::3]}
    assert make_engine().generate(prompts, 7) == answers(prompts)
    assert set(server.prompts().values()) == {1}


def test_sends_model_budget_and_greedy_decoding(server, make_engine):
    make_engine().generate(["prompt"], 7)
    make_engine(temperature=0.5, seed=3, no_template_kwargs=True, system="Be brief.").generate(["prompt"], 7)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "prompt"}]
    common = {"model": "the-model", "max_tokens": 7, "messages": turns[1:]}
    kwargs = {"enable_thinking": False, "date_string": "26 Jul 2024"}
    assert server.bodies == [
        {**common, "temperature": 0.0, "chat_template_kwargs": kwargs},
        {**common, "temperature": 0.5, "seed": 3, "messages": turns},
    ]


def test_equal_prompts_are_asked_once(server, make_engine):
    assert make_engine().generate(["one", "two", "one"], 7) == answers(["one", "two", "one"])
    assert server.prompts() == {"one": 1, "two": 1}


def test_no_prompts_need_no_request(server, make_engine):
    assert make_engine().generate([], 7) == []
    assert not server.bodies


@pytest.mark.parametrize("concurrency", [1, 4])
def test_concurrency_is_used_and_bounded(server, make_engine, concurrency):
    server.always = "slow"
    prompts = [f"question {number}" for number in range(12)]
    assert make_engine(concurrency=concurrency).generate(prompts, 7) == answers(prompts)
    assert server.most == concurrency


@each(
    "trouble",
    [
        [500, 503],
        [(429, None), 429],
        ["drop", "drop"],
        ["cut"],
        ["silence"],
        [b"{half an ans", b"\xff\xfe", b"[]"],
        [b'{"choices": []}', b'{"choices": null}'],
        [b'{"choices": [{"message": {}}]}', b'{"choices": [{"message": {"content": [7]}}]}'],
    ],
)
def test_trouble_that_passes_costs_no_answer(server, make_engine, trouble):
    server.bodies.clear()
    prompts = [f"question {number}" for number in range(6)]
    server.plans = {prompts[1]: list(trouble), prompts[4]: list(trouble)}
    assert make_engine(request_timeout=0.5).generate(prompts, 7) == answers(prompts)
    assert server.prompts()[prompts[1]] == len(trouble) + 1
    assert server.prompts()[prompts[0]] == 1


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_is_honoured(server, make_engine, dated):
    after = email.utils.formatdate(time.time() + 2, usegmt=True) if dated else "0.6"
    server.plans = {"busy": [(429, after)]}
    assert make_engine().generate(["busy"], 7) == answers(["busy"])
    first, second = server.times["busy"]
    assert second - first >= 0.6  # a date has whole seconds


def test_a_server_away_for_hours_ends_the_call(server, make_engine):
    server.plans = {"busy": [(503, "7200")]}
    with pytest.raises(UserError, match="come back in 7200 s"):
        make_engine().generate(["busy"], 7)


@pytest.mark.parametrize(
    "always, reason",
    [(500, "500"), ("drop", "disconnected"), (b"{half", "half"), (b'{"choices": []}', "choices")],
)
def test_trouble_that_stays_names_the_prompt(server, make_engine, always, reason):
    server.always = always
    with pytest.raises(UserError, match=f"in 4 attempts.*{reason}.*who wrote Hamlet"):
        make_engine().generate(["who wrote Hamlet"], 7)
    assert len(server.bodies) == 4


def test_a_refused_prompt_is_not_sent_again(server, make_engine):
    server.plans = {"too long": [400] * 9}
    with pytest.raises(UserError, match="400 Bad Request: as told; --keep_refused .*; prompt 'too long'"):
        make_engine().generate(["too long"], 7)
    assert len(server.bodies) == 1


def test_refused_prompts_may_count_as_answered_by_nothing(server, make_engine, caplog):
    engine = make_engine(keep_refused=True)
    server.plans = {"too long": [400], "rude": [422]}
    assert engine.generate(["too long", "a", "rude"], 7) == ["", "answer to a", ""]
    assert engine.troubles == ["refused", "", "refused"]
    engine.close()
    assert "2 prompts were refused by the server" in caplog.text
    with pytest.raises(UserError, match="404 Not Found"):  # a wrong address is no prompt's fault
        server.plans = {"b": [404]}
        make_engine(keep_refused=True).generate(["b"], 7)


def test_what_was_answered_is_kept_when_a_prompt_fails(server, make_engine):
    engine = make_engine(concurrency=2)
    prompts = [f"question {number}" for number in range(8)]
    server.plans = {prompts[5]: [400], **{prompt: ["slow"] for prompt in prompts[6:]}}
    with pytest.raises(UserError, match="question 5"):
        engine.generate(prompts, 7)
    assert engine.generate(prompts, 7) == answers(prompts)
    asked = server.prompts()
    assert asked.pop(prompts[5]) == 2
    assert set(asked.values()) == {1}


def test_nothing_more_is_sent_once_a_prompt_failed(server, make_engine):
    server.always = "slow"
    server.plans = {"first": [400]}
    with pytest.raises(UserError):
        make_engine(concurrency=2).generate(["first", *map(str, range(30))], 7)
    assert len(server.bodies) < 6


def test_an_unreachable_server_is_named(server):
    options = EngineOptions("", "openai", base_url="http://127.0.0.1:9/v1", server_model="the-model", retries=1)
    engine = OpenAIEngine(options)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1: no answer in 2 attempts"):
        engine.generate(["prompt"], 7)
    engine.close()


def test_the_key_comes_from_the_environment(server, make_engine, monkeypatch):
    server.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    assert make_engine().generate(["prompt"], 7) == answers(["prompt"])


@pytest.mark.parametrize("key", [None, "sk-wrong-0815"])
def test_a_wrong_key_is_reported_at_once_and_never_shown(server, make_engine, monkeypatch, caplog, key):
    caplog.set_level(logging.DEBUG)
    server.key = KEY
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="refuses the key.*OPENAI_API_KEY") as refusal:
        make_engine(concurrency=1).generate(["one", "two", "three"], 7)
    assert len(server.bodies) == 1
    assert "sk-" not in str(refusal.value) + caplog.text


def completion(message: dict, reason: str = "stop") -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": reason}]}).encode()


@each(
    ("message", "reason", "text", "trouble"),
    [
        ({"content": None}, "stop", "", "empty"),
        ({"content": None}, "length", "", "length"),
        ({"content": "Par"}, "length", "Par", "length"),
        ({"content": "I can"}, "content_filter", "I can", "content_filter"),
        ({"content": "", "reasoning_content": "Lyon or Paris?"}, "length", "", "thought"),
        ({"content": None, "reasoning": "Lyon or Paris?"}, "stop", "", "thought"),
        ({"content": "Lyon", "reasoning_content": "Lyon or Paris?"}, "stop", "Lyon", ""),
        ({"content": "<think>Paris?</think>Lyon"}, "stop", "Lyon", ""),
        ({"content": "<think>Paris?"}, "length", "", "thought"),
        ({"content": [{"type": "text", "text": "Ly"}, {"type": "text", "text": "on"}]}, "stop", "Lyon", ""),
        ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Lyon"}]}, "stop", "Lyon", ""),
    ],
)
def test_what_an_answer_is_and_what_went_wrong(server, make_engine, caplog, message, reason, text, trouble):
    caplog.clear()
    server.plans = {"ask": [completion(message, reason)]}
    engine = make_engine()
    assert engine.generate(["ask", "plain", "ask"], 7) == [text, "answer to plain", text]
    assert engine.troubles == [trouble, "", trouble]
    engine.close()
    assert ("2 texts" in caplog.text or "2 answers" in caplog.text) == bool(trouble)


def test_a_refusal_of_max_tokens_tries_max_completion_tokens(server, make_engine):
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    server.plans = {"one": [(400, None, json.dumps({"error": {"message": said}}).encode())]}
    assert make_engine(concurrency=1).generate(["one", "two"], 7) == answers(["one", "two"])
    assert ["max_tokens" in body for body in server.bodies] == [True, False, False]
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 7, 7]


@pytest.mark.parametrize("said", ["max_tokens is too large: 7", "temperature is not supported"])
def test_other_refusals_do_not(server, make_engine, said):
    server.plans = {"one": [(400, None, json.dumps({"error": {"message": said}}).encode())]}
    with pytest.raises(UserError, match=said):
        make_engine().generate(["one"], 7)
    assert len(server.bodies) == 1


def test_a_refusal_of_chat_template_kwargs_names_the_flag(server, make_engine):
    said = b'{"error": {"message": "Unrecognized request argument supplied: chat_template_kwargs"}}'
    server.plans = {"one": [(400, None, said)]}
    with pytest.raises(UserError, match="--no_template_kwargs leaves it out"):
        make_engine().generate(["one"], 7)


@each(
    "base_url, server_model, complaint",
    [
        (None, "m", "needs --base_url"),
        ("http://127.0.0.1:1/v1", None, "needs --server_model"),
        ("127.0.0.1:8000/v1", "m", "no address"),
        ("http:///v1", "m", "no address"),
        ("http://host:port/v1", "m", "no address"),
        ("http://user:secret@host/v1", "m", "must hold no user name"),
        ("http://host/v1?key=secret", "m", "must hold no user name"),
    ],
)
def test_bad_addresses_are_refused(base_url, server_model, complaint):
    with pytest.raises(UserError, match=complaint) as refusal:
        check_server_arguments(base_url, server_model)
    assert "secret" not in str(refusal.value)


def question(number: int) -> dict:
    passage = {"id": str(number), "title": "T", "text": f"Fact {number} is so.", "score": 1.0, "hasanswer": True}
    return {"id": str(number), "question": f"what is fact {number}?", "answers": ["so"], "ctxs": [passage]}


def test_a_stage_runs_on_a_server_alone(server, run_python, write_jsonl, read_jsonl, tmp_path):
    data = write_jsonl("data.jsonl", [question(number) for number in range(5)])
    command = ["-m", "gainRAG.rag_workflow.rag_generation", "--data_path", data, "--task", "NaturalQA"]
    command += ["--output_path", tmp_path / "out.jsonl", "--backend", "openai", "--base_url", server.url]
    command += ["--server_model", "the-model", "--lm_type", "no/such-weights"]
    server.key = KEY
    run = run_python(*command, env={"OPENAI_API_KEY": KEY})
    assert run.returncode == 0, run.stderr
    records = read_jsonl(tmp_path / "out.jsonl")
    assert [record["id"] for record in records] == list("01234")
    assert all(record["prediction"] == f"answer to {record['prompt']}".strip() for record in records)
    written = "".join(path.read_text() for path in tmp_path.iterdir()) + run.stdout + run.stderr
    assert KEY not in written
    assert "the-model" in (tmp_path / "out.jsonl.settings.json").read_text()
    assert json.loads((tmp_path / "out.metrics.json").read_text())["model"] == f"the-model at {server.url}"
