"""A stage's work in this process, or on several GPUs and machines: Ray actors, each with one GPU and its own model.

A worker is built once in a process and turns one chunk into its results. The driver reads the input and takes the
results in the input's order, so that a finished file is the same whatever the number of workers. One worker is the
driver itself and needs no Ray.
"""

import argparse
import logging
import os
import platform
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from gainRAG.common.cli import UserError, positive_float, positive_int, require, start_logging

logger = logging.getLogger(__name__)

Chunk: TypeAlias = Any
Result: TypeAlias = Any
Worker = Callable[[Chunk], Result]  # may have a method `close`, called when all chunks are done
DEATHS = 3  # of a worker with the same chunk, after which the chunk is to blame
REPORT_SECONDS = 60.0  # between two log lines on what is awaited
CLOSE_SECONDS = 60.0
NOTICE_SECONDS = 60.0  # a cluster calls a silent machine dead after half a minute
CALLS_A_WORKER = 2  # one that runs and one that is ready to run


@dataclass(frozen=True)
class WorkerOptions:
    """How a stage's work is spread; the flags of `add_worker_arguments`.

    Attributes:
        num_workers: processes, each with one GPU (without GPUs: with its share of the cores).
        ray_address: HOST:PORT of a running Ray cluster, `auto`, or None for this machine alone.
        worker_timeout: seconds without any result after which the run stops.
        device: of the model in each process, as `common.models.pick_device` reads it.
    """

    num_workers: int = 1
    ray_address: str | None = None
    worker_timeout: float = 3600.0
    device: str | None = None


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that spread a stage over GPUs and machines."""
    group = parser.add_argument_group("several GPUs or machines")
    group.add_argument(
        "--num_workers",
        type=positive_int,
        default=1,
        help="processes that share the work, each with one GPU (without GPUs: with its share of the cores); "
        "more than 1 need Ray",
    )
    group.add_argument(
        "--ray_address",
        default=None,
        metavar="HOST:PORT",
        help="the head of a running Ray cluster, or auto: the one of this machine; None: this machine alone",
    )
    group.add_argument(
        "--worker_timeout",
        type=positive_float,
        default=3600.0,
        metavar="SECONDS",
        help="stop when no worker has finished a chunk for so long, as when the cluster's GPUs are all in use",
    )


def worker_options(
    *,
    num_workers: int,
    ray_address: str | None,
    worker_timeout: float,
    device: str | None = None,
    tensor_parallel_size: int | None = None,
    **_,
) -> WorkerOptions:
    """From the parsed flags (`**vars(args)`) those of `add_worker_arguments`, checked before a model loads.

    Raises:
        UserError: Ray is not installed, nothing listens at its address, or flags contradict each other.
    """
    options = WorkerOptions(num_workers, ray_address, worker_timeout, device)
    if options.num_workers == 1:
        if options.ray_address:
            raise UserError("--ray_address: needs --num_workers, how many GPUs of the cluster to use")
        return options
    require("ray")
    if ":" in (device or ""):
        raise UserError(f"--device {device}: every worker has one GPU of its own; --device cuda, or leave it out")
    if (tensor_parallel_size or 1) > 1:
        raise UserError("--tensor_parallel_size: a worker has one GPU; share the LLM between GPUs with --num_workers 1")
    if options.ray_address and options.ray_address != "auto":
        _check_address(options.ray_address)
    return options


def _check_address(address: str) -> None:
    """Ray itself would try for two minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--ray_address {address}: wanted HOST:PORT, as `ray start --head` prints it, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as problem:
        raise UserError(f"--ray_address {address}: no Ray cluster answers there ({problem})") from None


def map_chunks(
    make_worker: Callable[[], Worker], chunks: Iterable[Chunk], options: WorkerOptions = WorkerOptions()
) -> Iterator[Result]:
    """The chunks' results, in order. Without a chunk no worker is made, so no model loads.

    Args:
        make_worker: builds the worker of a process; can be pickled: a class of a module, or a `partial` of one.
        chunks: what a worker takes, one at a time.
        options: how many workers, and where.

    Raises:
        UserError: as a worker raises it; no such cluster, or too few GPUs in this machine; a chunk that workers die of.
    """
    if options.num_workers > 1:
        yield from _RayWorkers(make_worker, options).map(chunks)
        return
    worker = None
    for chunk in chunks:
        worker = worker or make_worker()
        yield worker(chunk)
    _close(worker)


def _close(worker: Worker | None) -> None:
    if worker is not None and hasattr(worker, "close"):
        worker.close()


class _RayWorkers:
    """Actors that Ray restarts where they die, with a window of calls that are on their way."""

    def __init__(self, make_worker: Callable[[], Worker], options: WorkerOptions) -> None:
        self.ray = _connect(options.ray_address)
        self.options = options
        self.resource = _resource(options.device)
        number = min(options.num_workers, self._capacity())
        if number < options.num_workers:
            place = f"the cluster at {options.ray_address}" if options.ray_address else "this machine"
            problem = f"--num_workers {options.num_workers}: {place} has {number} {self.resource}s, one a worker"
            if not options.ray_address or not number:
                raise UserError(problem)
            logger.warning("%s; %d start", problem, number)  # a lost machine does not stop a night's work
        threads = max(1, int(self.ray.cluster_resources().get("CPU", 1)) // number)
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), "TQDM_DISABLE": "1"}
        # vLLM inside the worker: an engine in a process of its own would live on, and keep its GPU, when one is killed.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        actor = self.ray.remote(_Actor).options(
            num_gpus=int(self.resource == "GPU"),
            num_cpus=int(self.resource == "CPU"),
            runtime_env={"env_vars": environment},
            max_restarts=-1,
            max_task_retries=DEATHS - 1,
        )
        self.stored = self.ray.put(make_worker)  # kept: a restarted actor reads it again
        self.actors = [actor.remote([self.stored], os.getcwd()) for _ in range(number)]
        self.nodes = [actor.node.remote() for actor in self.actors]  # where each began, asked before it is at work

    def map(self, chunks: Iterable[Chunk]) -> Iterator[Result]:
        """The chunks' results, in order; the workers are gone afterwards."""
        calls: deque[_Call] = deque()
        try:
            for number, chunk in enumerate(chunks):
                calls.append(_Call(chunk, self.actors[number % len(self.actors)]))
                if len(calls) == CALLS_A_WORKER * len(self.actors):
                    yield self._result(calls)
            while calls:
                yield self._result(calls)
            closing = [actor.close.remote() for actor in self.actors]
            self.ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        finally:
            for actor in self.actors:
                self.ray.kill(actor)

    def _result(self, calls: "deque[_Call]") -> Result:
        """Waits for the first call and takes it off the queue."""
        step, waited = min(REPORT_SECONDS, self.options.worker_timeout), 0.0
        while not self.ray.wait([calls[0].result], timeout=step)[0]:
            waited += step
            if self._capacity() < len(self.actors):
                self._leave_lost_machines(calls)
            self._report_waiting(waited)
        try:
            result = self.ray.get(calls[0].result)
        except self.ray.exceptions.RayTaskError as failure:
            if isinstance(failure.cause, UserError):
                raise UserError(str(failure.cause)) from None
            raise
        except self.ray.exceptions.RayError as death:  # of the worker, of its machine, or of the result on its way
            if self._lost_a_machine():
                self._leave_lost_machines(calls)
                return self._result(calls)
            reason = " ".join(str(death).split())
            raise UserError(
                f"{DEATHS} workers died of the same records; what is finished is kept, and the same command resumes "
                f"there. The last died so: {reason:.400}"
            ) from None
        calls.popleft()
        return result

    def _lost_a_machine(self) -> bool:
        """Whether a worker died with its machine, which a cluster notices some seconds later."""
        end = time.monotonic() + NOTICE_SECONDS if self.options.ray_address else 0.0
        while self._capacity() >= len(self.actors):
            if time.monotonic() >= end:
                return False
            time.sleep(1.0)
        return True

    def _leave_lost_machines(self, calls: "deque[_Call]") -> None:
        """Gives the calls of workers whose machine is gone to the others; a UserError where none are left."""
        alive = {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
        lost = [actor for actor, node in zip(self.actors, self.nodes, strict=True) if not self._is_in(node, alive)]
        if len(lost) == len(self.actors):
            raise UserError("the last machine with workers is gone; the same command resumes where it stopped")
        self.nodes = [node for actor, node in zip(self.actors, self.nodes, strict=True) if actor not in lost]
        self.actors = [actor for actor in self.actors if actor not in lost]
        for number, call in enumerate([call for call in calls if call.actor in lost]):
            call.send_to(self.actors[number % len(self.actors)])
        for actor in lost:
            self.ray.kill(actor)
        logger.warning("%d workers are gone with their machine, %d continue", len(lost), len(self.actors))

    def _is_in(self, node, alive: set[str]) -> bool:
        """Whether a worker told its machine and that is one of `alive`; one that never started is on none."""
        ready, _ = self.ray.wait([node], timeout=0)
        try:
            return bool(ready) and self.ray.get(node) in alive
        except self.ray.exceptions.RayError:  # the answer itself is lost with the machine
            return False

    def _report_waiting(self, waited: float) -> None:
        """Logs what is awaited; a UserError when `worker_timeout` is over."""
        capacity = self._capacity()
        used = capacity - int(self.ray.available_resources().get(self.resource, 0))
        state = f"{used} of the {capacity} {self.resource}s are in use, {len(self.actors)} workers wanted"
        if waited >= self.options.worker_timeout:
            raise UserError(
                f"no worker finished anything for {waited:.0f} s ({state}); the same command resumes, and "
                "--worker_timeout sets how long it waits"
            )
        logger.info("waiting for a worker since %.0f s: %s", waited, state)

    def _capacity(self) -> int:
        """Workers that the machines of the cluster, as many as are left, have room for."""
        return int(self.ray.cluster_resources().get(self.resource, 0))


class _Call:
    """A chunk on its way through a worker."""

    def __init__(self, chunk: Chunk, actor) -> None:
        self.chunk = chunk
        self.send_to(actor)

    def send_to(self, actor) -> None:
        self.actor, self.result = actor, actor.work.remote(self.chunk)


class _Actor:
    """A worker in its process; a Ray actor. The model loads with the first chunk, where a UserError can be told."""

    def __init__(self, stored: list, folder: str) -> None:
        start_logging()
        self.stored, self.folder = stored, folder
        self.worker: Worker | None = None

    def work(self, chunk: Chunk) -> Result:
        """The result of one chunk."""
        if self.worker is None:
            self.worker = self._make_worker()
        return self.worker(chunk)

    def _make_worker(self) -> Worker:
        import ray

        try:
            os.chdir(self.folder)  # what the flags' relative paths start from
            make_worker = ray.get(self.stored[0])
        except OSError:
            raise UserError(
                f"{self.folder}: no such folder on {platform.node()}; every machine needs the same paths"
            ) from None
        except Exception as problem:  # what it was pickled from cannot be imported here
            reason = " ".join(str(problem).split())
            raise UserError(f"no worker starts, every machine needs the same packages: {reason:.1000}") from None
        return make_worker()

    def node(self) -> str:
        """The machine it runs on, as `ray.nodes()` names it."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def close(self) -> None:
        """Closes the worker, where one was made."""
        _close(self.worker)


def workers_a_machine(options: WorkerOptions) -> int:
    """The most workers that one machine may get.

    Raises:
        UserError: no cluster answers at the address.
    """
    if not options.ray_address:
        return options.num_workers
    nodes, resource = _connect(options.ray_address).nodes(), _resource(options.device)
    return max(1, min(options.num_workers, max(int(node["Resources"].get(resource, 0)) for node in nodes)))


def _resource(device: str | None) -> str:
    """Ray's name of what a worker has one of."""
    import torch

    return "GPU" if device != "cpu" and torch.cuda.is_available() else "CPU"


def _connect(address: str | None):
    """The module `ray`, connected; a UserError where no cluster answers at the address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report each use to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own future default, else it warns
    if address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:  # which reads it on import
        # Other users of this machine can reach our Ray: they would need this run's token, which is in no file.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address or "local", include_dashboard=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as problem:
            where = f"--ray_address {address}" if address else "Ray does not start on this machine"
            raise UserError(f"{where}: {' '.join(str(problem).split()):.400}") from None
    return ray
