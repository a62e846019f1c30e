"""All benchmarks that a GPU decides, one after the other within a time limit, and their figures in one JSON.

    bash scripts/bench_gpu.sh results/bench_gpu.json
    SIZE=tiny bash scripts/bench_gpu.sh tiny.json          tries the script itself, also without a GPU

It needs torch, transformers, sentence-transformers and numpy alone. A part that needs a package which is not there says
"absent", one that had to be stopped says "cut". Weights are random and texts made up: right for speed, no quality.
"""

import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from gainRAG.common.cli import positive_int, run_stage, stage_parser
from gainRAG.common.jsonl import write_json
from gainRAG.common.settings import versions

HERE = Path(__file__).resolve().parent
PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "numpy",
    "FlagEmbedding",
    "deepspeed",
    "accelerate",
    "vllm",
    "faiss-gpu",
    "faiss-cpu",
)
# name: (most seconds, package it cannot do without, output flag, arguments at full size, arguments when tiny)
PARTS = {
    "gain": (
        200,
        None,
        "--json",
        "gain.py --made_up llama3_8b --dtype bfloat16 --questions 32 --naive_questions 3",
        "gain.py --made_up tiny --questions 1 --passages 3 --prompt_tokens 120 --answers 1 3 --naive_questions 1",
    ),
    "selector": (
        100,
        None,
        "--output_path",
        "selector.py --model random --made_up --questions 200",
        "selector.py --model random --made_up --tiny --questions 2 --candidates 5 --repeats 1",
    ),
    "training": (
        150,
        None,
        "--output_path",
        "training.py --model random --made_up",
        "training.py --model random --made_up --tiny --steps 2 --batch_size 2 --group_size 3",
    ),
    "embedding": (
        60,
        None,
        "--output_path",
        "embedding.py --made_up",
        "embedding.py --made_up --tiny --passages 20 --repeats 1",
    ),
    "retrieval": (
        120,
        "faiss",
        "--json",
        "retrieval.py --passages 300000 --dim 768 --max_memory_mb 4000 --repeats 1",
        "retrieval.py --passages 500 --dim 16 --questions 5 --n_docs 5 --repeats 1",
    ),
}


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--output_path", required=True, help="the figures, .json")
    parser.add_argument("--seconds", type=positive_int, default=520, help="for all parts together")
    parser.add_argument("--tiny", action="store_true", help="small shapes: tries the script, measures nothing")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    parts = {}
    for name, (most, package, flag, full, tiny) in PARTS.items():
        if package and importlib.util.find_spec(package) is None:
            parts[name] = {"state": "absent", "needs": package}
        else:
            seconds = min(most, deadline - time.monotonic())
            parts[name] = run_part((tiny if args.tiny else full).split() + plain_loop(name), flag, seconds)
        print(f"{name}: {parts[name]['state']}", flush=True)
    reached = goals({} if args.tiny else parts)
    write_json(args.output_path, {**about(args.tiny), "goals": reached, "parts": parts})
    print(json.dumps(reached, indent=2))


def plain_loop(name: str) -> list[str]:
    """Training without the packages of this project's trainer goes by a loop of PyTorch alone."""
    there = all(importlib.util.find_spec(package) for package in ("FlagEmbedding", "accelerate", "datasets"))
    return ["--plain_loop"] if name == "training" and not there else []


def run_part(arguments: list[str], flag: str, seconds: float) -> dict:
    """One benchmark in a process of its own: its figures, and how it ended ("done", "cut" or "failed")."""
    if seconds < 1:
        return {"state": "cut", "seconds": 0.0}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        command = [sys.executable, str(HERE / arguments[0]), *arguments[1:], flag, str(path)]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                state = "done" if process.wait(seconds) == 0 else "failed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own group, with the workers it started
                process.wait()
                state = "cut"
            log.seek(0)
            last = log.read()[-3000:]
        figures = json.loads(path.read_text("utf-8")) if path.exists() else None
    found = {"state": state, "command": " ".join(arguments), "seconds": time.monotonic() - started, "figures": figures}
    return found if state == "done" else {**found, "log": last}


def about(tiny: bool) -> dict:
    """The machine and its packages, and what the figures stand for."""
    on_gpu = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if on_gpu else None
    there = versions(PACKAGES)
    return {
        "device": torch.cuda.get_device_name(0) if on_gpu else "cpu",
        "gpu_gib": properties.total_memory / 2**30 if on_gpu else None,
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": there,
        "absent": [name for name in PACKAGES if name not in there],
        "weights": "random, in the shapes of Llama-3-8B, bge-reranker-base, Contriever; texts and tokenizers made up",
        "tiny": tiny,
    }


def goals(parts: dict) -> list[dict]:
    """The goals for one H100: what was found, and whether that reaches them; "absent" where it was not measured."""
    figures = {name: part.get("figures") or {} for name, part in parts.items()}
    gains = {run["answers"]: run.get("ratio") for run in figures.get("gain", {}).get("runs", ())}
    rates = {row["way"]: row["pairs_per_second"] for row in figures.get("selector", {}).get("results", ())}
    speedups = {row["setting"]: row["speedup"] for row in figures.get("training", {}).get("results", ())}
    wanted = [
        ("gain: times the one-at-a-time way, 1 answer", 12, gains.get(1)),
        ("gain: times the one-at-a-time way, 8 answers", 50, gains.get(8)),
        ("selection: pairs a second, base size", 10_000, rates.get("Selector")),
        ("training: times the published flags", 2.5, speedups.get("fastest")),
    ]
    return [
        {"goal": name, "wanted": least, "found": found, "reached": "absent" if found is None else found >= least}
        for name, least, found in wanted
    ]


if __name__ == "__main__":
    run_stage(main)
