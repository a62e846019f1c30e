"""A stage's work on several GPUs or machines: a pool of Ray actors, each with a model of its own and one GPU.

What works is built once in each process and turns a stream of chunks into a stream of their results. The driver reads
the input and takes the results in the input's order, so that a finished file is the same whatever the number of
workers. One worker is the driver itself and needs no Ray.
"""

import argparse
import contextlib
import itertools
import logging
import os
import platform
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from gainRAG.cli import UserError, positive_int, require, start_logging

logger = logging.getLogger(__name__)

Chunk = Result = Any
DEATHS = 3  # of workers with the same chunks, after which the chunks are to blame
CONNECT_SECONDS = 10
GROUPS_AHEAD = 2  # a worker: one at work, and one finished out of turn that waits for those before it


class Worker(Protocol):
    """Does a stage's work. Its class stands at the top level of a module, so that other processes can build it."""

    def __call__(self, chunks: Iterator[Chunk]) -> Iterable[Result]:
        """One result a chunk, in order; it depends on its chunk alone."""

    def close(self) -> None:
        """Frees the model, and logs what was counted."""


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


def check_worker_arguments(args: argparse.Namespace) -> None:
    """Finds the user's mistakes before a model loads.

    Raises:
        UserError: Ray is not installed, nothing listens at its address, or flags contradict each other.
    """
    if args.num_workers == 1:
        if args.ray_address:
            raise UserError("--ray_address: needs --num_workers, how many GPUs of the cluster to use")
        return
    require("ray")
    if ":" in (args.device or ""):
        raise UserError(f"--device {args.device}: every worker has one GPU of its own; --device cuda, or leave it out")
    if (getattr(args, "tensor_parallel_size", None) or 1) > 1:
        raise UserError("--tensor_parallel_size: a worker has one GPU; share the LLM between GPUs with --num_workers 1")
    if args.ray_address and args.ray_address != "auto":
        _check_address(args.ray_address)


def _check_address(address: str) -> None:
    """Ray itself would try for two minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--ray_address {address}: wanted HOST:PORT, as `ray start --head` prints it, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as problem:
        raise UserError(f"--ray_address {address}: no Ray cluster answers there ({problem})") from None


def map_chunks(
    args: argparse.Namespace, make_worker: Callable[[], Worker], chunks: Iterable[Chunk], group: int = 1
) -> Iterator[Result]:
    """The chunks' results, in order, computed by as many workers as the flags say.

    Args:
        args: the flags of `add_worker_arguments`, and `device`.
        make_worker: can be pickled: a class, or a `partial` of one.
        group: chunks handed to a worker at a time; one that reads ahead wants several.

    Raises:
        UserError: as a worker raises it; no such cluster, or too few GPUs; a chunk that workers die of.
    """
    if args.num_workers > 1:
        yield from _Pool(args, make_worker).map(_groups(chunks, group))
        return
    worker = make_worker()
    yield from worker(iter(chunks))
    worker.close()


def _groups(chunks: Iterable[Chunk], size: int) -> Iterator[list[Chunk]]:
    chunks = iter(chunks)
    while group := list(itertools.islice(chunks, size)):
        yield group


@dataclass
class _Call:
    """Chunks on their way through a worker."""

    number: int
    group: list[Chunk]
    deaths: int = 0


class _Pool:
    """Actors of a Ray cluster. One that dies is replaced, and its chunks go to another."""

    def __init__(self, args: argparse.Namespace, make_worker: Callable[[], Worker]) -> None:
        self.ray = _connect(args.ray_address)
        on_gpus = _on_gpus(args.device)
        self.resource = "GPU" if on_gpus else "CPU"
        if self._capacity() < args.num_workers:
            where = f"the cluster at {args.ray_address}" if args.ray_address else "this machine"
            raise UserError(
                f"--num_workers {args.num_workers}: {where} has {self._capacity()} {self.resource}s, one a worker"
            )
        threads = max(1, int(self.ray.cluster_resources().get("CPU", 1)) // args.num_workers)
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), "TQDM_DISABLE": "1"}
        actor = self.ray.remote(_Actor).options(
            num_gpus=int(on_gpus), num_cpus=int(not on_gpus), runtime_env={"env_vars": environment}
        )
        self._start = partial(actor.remote, self.ray.put(make_worker), os.getcwd())
        self.window = GROUPS_AHEAD * args.num_workers
        self.idle = [self._start() for _ in range(args.num_workers)]
        self.running: dict[Any, tuple[Any, _Call]] = {}  # by the reference to the result
        self.again: list[_Call] = []  # calls whose worker died
        self.results: dict[int, list[Result]] = {}  # of calls that ended out of turn
        self.next = 0  # the call whose results are next in turn

    def map(self, groups: Iterable[list[Chunk]]) -> Iterator[Result]:
        """The results of all groups' chunks, in order; the workers are gone afterwards."""
        try:
            for number, group in enumerate(groups):
                self._submit(_Call(number, group))
                while not self.idle or number + 1 - self.next >= self.window:
                    yield from self._in_turn()
            while self.running:
                yield from self._in_turn()
            for closing in [actor.close.remote() for actor in self.idle]:
                with contextlib.suppress(self.ray.exceptions.RayActorError):  # dead now, when all is done
                    self.ray.get(closing)
        finally:
            for actor in [*self.idle, *(actor for actor, _ in self.running.values())]:
                self.ray.kill(actor)

    def _submit(self, call: _Call) -> None:
        actor = self.idle.pop()
        self.running[actor.work.remote(call.group)] = actor, call

    def _in_turn(self) -> Iterator[Result]:
        """Waits for a call to end, and gives what is in turn then."""
        ended, _ = self.ray.wait(list(self.running))
        for reference in ended:
            self._end(reference, *self.running.pop(reference))
        while self.idle and self.again:
            self._submit(self.again.pop())
        while self.next in self.results:
            yield from self.results.pop(self.next)
            self.next += 1

    def _end(self, reference, actor, call: _Call) -> None:
        try:
            results = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as failure:
            self.idle.append(actor)
            if isinstance(failure.cause, UserError):
                raise UserError(str(failure.cause)) from None
            raise
        except self.ray.exceptions.RayError as death:  # of the worker, of its machine, or of the result on its way
            self.ray.kill(actor)
            self._bury(call, death)
        else:
            self.idle.append(actor)
            self.results[call.number] = results

    def _bury(self, call: _Call, death: Exception) -> None:
        reason = " ".join(str(death).split())
        if getattr(death, "actor_init_failed", False):
            raise UserError(f"no worker starts, every machine needs the same packages: {reason:.1000}")
        call.deaths += 1
        if call.deaths == DEATHS:
            raise UserError(
                f"{DEATHS} workers died of the same records; what is finished is kept, and the same command goes on "
                f"there. The last died so: {reason:.400}"
            )
        alive = len(self.idle) + len(self.running)
        if self._capacity() > alive:
            self.idle.append(self._start())
            logger.warning("a worker died and is replaced, its records go to another: %.400s", reason)
        elif alive:
            logger.warning("a worker died with its machine, %d go on: %.400s", alive, reason)
        else:
            raise UserError("the last machine with workers is gone; the same command goes on where it stopped")
        self.again.append(call)

    def _capacity(self) -> int:
        """Workers that the machines of the cluster, as many as are left, have room for."""
        return int(self.ray.cluster_resources().get(self.resource, 0))


class _Actor:
    """A worker in its process; a Ray actor. The model loads with the first chunks, where a UserError finds its way."""

    def __init__(self, make_worker: Callable[[], Worker], folder: str) -> None:
        start_logging()
        self.make_worker, self.folder = make_worker, folder
        self.worker: Worker | None = None

    def work(self, group: list[Chunk]) -> list[Result]:
        """The results of some chunks."""
        if self.worker is None:
            try:
                os.chdir(self.folder)  # what the flags' relative paths start from
            except OSError:
                raise UserError(
                    f"{self.folder}: no such folder on {platform.node()}; every machine needs the same paths"
                ) from None
            self.worker = self.make_worker()
        return list(self.worker(iter(group)))

    def close(self) -> None:
        if self.worker:
            self.worker.close()


def _on_gpus(device: str | None) -> bool:
    import torch

    return device != "cpu" and torch.cuda.is_available()


def _connect(address: str | None):
    """The module `ray`, connected.

    Raises:
        UserError: no cluster answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report each use to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own future default, else it warns
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        # Other users of this machine can reach our Ray: they would need this run's token, which stands in no file.
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
