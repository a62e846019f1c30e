"""A Python that starts at once: a server that has imported torch, transformers and the rest forks for every command.

    python fork_server.py SOCKET                         the server; it imports, then makes SOCKET
    python -S -I fork_client.py SOCKET -m module ...     runs `python -m module ...` in a fork of it

A test of hundreds of commands would otherwise spend its time on imports. The client (CLIENT below) hands over its
arguments, environment, working folder and standard streams, and ends with the command's exit code. When the client is
killed, so is the command.
"""

import atexit
import contextlib
import gc
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

CLIENT = """
import array, json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
request = json.dumps([sys.argv[2:], dict(os.environ), os.getcwd()]).encode()
streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
connection.sendmsg([len(request).to_bytes(4, "big")], streams)
connection.sendall(request)
os._exit(int(connection.recv(16) or b"1"))
"""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """A server, and the variable by which `python` in bash scripts is its client."""
    (folder / "client.py").write_text(CLIENT)
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen([sys.executable, __file__, folder / "socket"], env={**os.environ, **quiet}, cwd=folder)
    while not (folder / "socket").exists() and server.poll() is None:
        time.sleep(0.05)
    client = f'{sys.executable} -S -I "{folder / "client.py"}" "{folder / "socket"}" "$@"'
    try:
        yield {"BASH_FUNC_python%%": f"() {{ {client}; }}"}
    finally:
        server.kill()
        server.wait()


def run_command(arguments: list[str]) -> None:
    """As the interpreter's own command line: `-m MODULE ...`, `- ...` or `FILE ...`."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-":
        sys.argv = arguments
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def exit_code_of(arguments: list[str]) -> int:
    """Runs a command to its end, but for taking the interpreter apart, which takes seconds with so much imported."""
    code = 0
    try:
        run_command(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def serve_command(connection: socket.socket) -> None:
    """Runs one command in a child and tells its exit code, or kills it when the client is gone."""
    import json

    header, streams, _, _ = socket.recv_fds(connection, 4, 3)
    size, request = int.from_bytes(header, "big"), b""
    while len(request) < size:
        request += connection.recv(size - len(request))
    arguments, environment, folder = json.loads(request)
    child = os.fork()
    if not child:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        os._exit(exit_code_of(arguments))
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if ended in ready:
        connection.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
    os._exit(0)


def main() -> None:
    import faiss  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.bert.modeling_bert
    import transformers.models.llama.modeling_llama
    import transformers.models.xlm_roberta.modeling_xlm_roberta  # noqa: F401
    from FlagEmbedding.finetune.reranker.encoder_only.base import EncoderOnlyRerankerRunner  # noqa: F401
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer  # noqa: F401

    gc.freeze()  # collecting what is imported would copy it in every fork
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[1])
    server.listen(8)
    while True:
        connection, _ = server.accept()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            serve_command(connection)
        connection.close()


if __name__ == "__main__":
    main()
