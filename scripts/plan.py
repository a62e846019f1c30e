"""What the paper's run needs, step by step, and all that is missing: `bash scripts/reproduce.sh --plan`.

Reads the settings of scripts/paths.sh from the environment. Standard library only, so that it runs in a fresh clone.
Exit code 0 where nothing is missing, else 2. Sizes of downloads and memory are rounded up; hours are predicted from
rates of a first sketch on one H100 where there are some (docs/cluster.md), for one GPU.
"""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
GB = 10**9
PASSAGES = 21_015_324
EVALUATION = {  # question set -> its size
    "HotpotQA_dev": 500,
    "2WikiMultiHopQA_dev": 500,
    "WebQuestions_test": 2032,
    "NaturalQA_test": 3610,
    "TriviaQA_test": 11313,
    "SQuAD_test": 10570,
}
TRAINING = ("HotpotQA_train", "WebQuestions_train")
WEBQUESTIONS = 3778
CORPUS_BYTES, VECTOR_BYTES, STORE_BYTES = 5 * GB, 4 * 768 * PASSAGES, 15 * GB
RESULT_BYTES = 20 * GB
RAM_BYTES = 16 * GB  # exact search takes 8, and one pickle of published vectors at a time
PAIRS_A_SECOND, GROUPS_A_SECOND = 5083, 59  # selection and training on one H100


@dataclass(frozen=True)
class Step:
    """A step of reproduce.sh.

    Attributes:
        needs: disk and memory.
        hours: of one GPU.
        inputs: what it reads.
        outputs: what is there when it is done.
    """

    title: str
    size: str
    needs: str
    hours: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]


def setting(name: str) -> str:
    return os.environ.get(name, "")


def flags(name: str) -> str:
    return setting(f"TEXT_{name}")


def folder(name: str) -> Path:
    return Path(setting(name))


def plan_steps() -> list[Step]:
    """The steps, in the order of reproduce.sh."""
    work, questions, hotpot = folder("WORK"), folder("QUESTIONS"), setting("HOTPOTQA_QUESTIONS")
    drawn = f"HotpotQA_train{hotpot}"
    trained = int(hotpot) + WEBQUESTIONS
    asked, n_docs, candidates = sum(EVALUATION.values()), int(setting("N_DOCS")), int(setting("NUM_PASSAGES"))
    names = [drawn, "WebQuestions_train", *EVALUATION]

    def files(place: str, sets=EVALUATION, ending: str = ".jsonl") -> tuple[Path, ...]:
        return tuple(work / place / f"{name}{ending}" for name in sets)

    fetched = tuple(questions / f"{name}.jsonl" for name in (*EVALUATION, *TRAINING))
    searched = tuple(questions / f"{name}.jsonl" for name in names)
    corpus, vectors, selector = folder("PASSAGES"), embeddings(), folder("SELECTOR") / "config.json"
    llm = f"GPU memory {llm_memory()}"
    selection_hours = f"{asked * (n_docs + 1) / PAIRS_A_SECOND / 3600:.2f} predicted for the pairs"
    disk = f"disk: corpus {CORPUS_BYTES / GB:.0f} GB, vectors up to {VECTOR_BYTES / GB:.0f} GB, twice while unpacked"
    table_files = {name: (folder("TABLES") / f"{name}.json",) for name in
                   ("table_main", "table_ablation", "table_topk", "figure_gap")}  # fmt: skip
    return [
        Step("1 downloads", f"{PASSAGES:,} passages and vectors, 8 question sets", disk, "as the network is", (),
             (corpus, vectors, *fetched)),
        Step("2 training questions", f"{hotpot} of HotpotQA, all {WEBQUESTIONS:,} of WebQuestions", "nothing much",
             "0.01", (questions / "HotpotQA_train.jsonl",), (questions / f"{drawn}.jsonl",)),
        Step("3 retrieval", f"{trained + asked:,} questions, {PASSAGES:,} passages",
             f"RAM {RAM_BYTES / GB:.0f} GB; disk: passage store {STORE_BYTES / GB:.0f} GB; GPU memory 8 GB",
             "not measured", (corpus, vectors, *searched), files("retrieved", names)),
        Step("4 supervision", f"{trained:,} questions x {candidates + 1} candidates", llm, "not measured",
             files("retrieved", names[:2]), (*files("kept", names[:2]), work / "train.jsonl")),
        Step("5 training", f"about 10,000 groups, {setting('EPOCHS')} epochs", "GPU memory 24 GB on each GPU",
             f"{10_000 * float(setting('EPOCHS')) / GROUPS_A_SECOND / 3600:.2f} predicted",
             (work / "train.jsonl",), (selector,)),
        Step("6 main table", f"{asked:,} questions x {n_docs + 1} candidates, then 5 methods' answers", llm,
             f"{selection_hours}, the texts not measured", (selector, *files("retrieved")),
             (*files("selected/gainrag"), *files("answers", ending="/results.json"), *table_files["table_main"])),
        Step("7 ablation", "a second training; 3 sets, 2 more methods", llm, "not measured", files("kept", names[:2]),
             table_files["table_ablation"]),
        Step("8 top-k", "3 sets, 3 methods, 1 to 5 passages", llm, "not measured", files("selected/gainrag"),
             table_files["table_topk"]),
        Step("9 figure 1", "the answers of step 6", "nothing more", "0.01", files("answers", ending="/results.json"),
             table_files["figure_gap"]),
    ]  # fmt: skip


def embeddings() -> Path:
    """The folder of vectors: that of the settings, else the one that the download makes."""
    if setting("EMBEDDINGS"):
        return folder("EMBEDDINGS")
    return folder("DOWNLOADS") / "wikipedia_embeddings" / Path(setting("ENCODER")).name


def llm_memory() -> str:
    """What the LLM takes on a GPU, by the number of parameters in its name."""
    size = llm_bytes()
    return "unknown: its name does not tell its size" if size is None else f"{size / GB:.0f} GB"


def llm_bytes() -> float | None:
    found = re.search(r"(\d+(?:\.\d+)?)B\b", setting("LLM"))
    in_float32 = "--gain_dtype float32" in flags("SUPERVISION_FLAGS")
    return float(found[1]) * GB * (4 if in_float32 else 2) + 8 * GB if found else None


def find_missing(steps: list[Step]) -> list[str]:
    """Everything that is not there, a line each."""
    missing = [f"{name}: {remedy}" for name, remedy in missing_packages()]
    missing += [f"the command {name}" for name in ("curl", "tar") if not shutil.which(name)]
    for name in ("ENCODER", "LLM", "SELECTOR_START"):
        if lack := missing_model(setting(name)):
            missing.append(f"{name}={setting(name)}: {lack}")
    missing += missing_hardware()
    by_hand = {folder("QUESTIONS") / f"{name}.jsonl" for name in ("HotpotQA_dev", "2WikiMultiHopQA_dev")}
    for path in steps[0].outputs:
        if not path.exists():
            missing.append(f"{path} (step 1{', which says what to get by hand' if path in by_hand else ''})")
    return missing


def missing_packages() -> list[tuple[str, str]]:
    """(package, how to install it), of those that the settings need."""
    needed = ["torch", "transformers", "numpy", "tqdm", "regex", "pyyaml", "httpx", "gainRAG", "FlagEmbedding",
              "accelerate", "datasets"]  # fmt: skip
    if "--deepspeed" in flags("SPEED_FLAGS"):
        needed.append("deepspeed")
    if "vllm" in flags("LLM_FLAGS"):
        needed.append("vllm")
    found = [(name, "pip install -r requirements.txt") for name in needed if not is_installed(name)]
    if not importlib.util.find_spec("faiss"):
        found.append(("faiss", "pip install faiss-gpu, or faiss-cpu"))
    if int(setting("WORKERS")) > 1 and not is_installed("ray"):
        found.append(("ray", f"WORKERS={setting('WORKERS')} needs it; pip install -e '.[ray]'"))
    return found


def is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return distribution == "gainRAG" and importlib.util.find_spec("gainRAG") is not None
    return True


def missing_model(name: str) -> str | None:
    """Why a model's weights are not here; None where they are."""
    if Path(name).is_dir():
        return None if (Path(name) / "config.json").exists() else "holds no config.json"
    source = model_table().get(name, name)
    if source.startswith("package:"):
        package = source.removeprefix("package:").partition("/")[0]
        return None if importlib.util.find_spec(package) else f"the Python package {package} is not installed"
    if "/" not in source:
        return "no folder, no hub id, no name of gainRAG/common/models.py"
    own = Path(setting("GAINRAG_MODELS") or "/nonexistent") / source.rpartition("/")[2]
    home = Path(setting("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(setting("HF_HUB_CACHE") or home / "hub") / f"models--{source.replace('/', '--')}" / "snapshots"
    if (own / "config.json").exists() or any(cache.glob("*/config.json")):
        return None
    return f"no weights here; hf download {source}, or GAINRAG_MODELS=FOLDER that holds {own.name}/"


def model_table() -> dict[str, str]:
    """Name -> hub id or package, read from the source of gainRAG's table: importing it needs torch."""
    tree = ast.parse((REPO / "gainRAG" / "common" / "models.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "MODELS":
            return {key.value: call.args[0].value for key, call in zip(node.value.keys, node.value.values, strict=True)}
    return {}


def missing_hardware() -> list[str]:
    """What this machine lacks: GPUs, their memory, RAM, disk."""
    missing, wanted, memories = [], int(setting("GPUS")), gpu_memories()
    if len(memories) < wanted:
        missing.append(f"GPUs: GPUS={wanted} are wanted, {len(memories)} are here")
    if wanted and memories and min(memories) < (llm_bytes() or 0):
        missing.append(f"GPU memory: {min(memories) / GB:.0f} GB, the LLM needs about {llm_memory()}")
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    downloads = folder("DOWNLOADS")
    fetched = [folder("PASSAGES").exists(), embeddings().is_dir()]
    sizes = {
        downloads: (not fetched[0]) * (CORPUS_BYTES + STORE_BYTES) + (not fetched[1]) * 2 * VECTOR_BYTES,
        folder("WORK"): RESULT_BYTES,
    }
    if wanted and ram < RAM_BYTES:
        missing.append(f"RAM: {ram / GB:.0f} GB here, {RAM_BYTES / GB:.0f} GB are needed")
    for place, needed in sizes.items() if wanted else ():
        if (free := free_bytes(place)) < needed:
            missing.append(f"disk at {place}: {free / GB:.0f} GB free, up to {needed / GB:.0f} GB are needed")
    return missing


def gpu_memories() -> list[float]:
    """Bytes of each GPU that this machine shows."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [float(line) * 2**20 for line in shown.split() if line.isdigit()]


def free_bytes(place: Path) -> int:
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def state_of(step: Step, earlier: list[Step]) -> str:
    """Done, ready, or what it waits for."""
    if all(path.exists() for path in step.outputs):
        return "done"
    absent = [path for path in step.inputs if not path.exists()]
    if not absent:
        return "its inputs are there" if step.inputs else "to be run"
    makers = [other.title for other in earlier if set(other.outputs) & set(absent)]
    return f"its inputs come from: {', '.join(makers) or 'earlier steps'}"


def main() -> int:
    steps = plan_steps()
    print(f"{setting('LLM')}, {setting('ENCODER')}, {setting('SELECTOR_START')}; GPUS={setting('GPUS')}, "
          f"WORKERS={setting('WORKERS')}{', Ray at ' + setting('RAY_ADDRESS') if setting('RAY_ADDRESS') else ''}; "
          f"into {setting('WORK')}\n")  # fmt: skip
    for number, step in enumerate(steps):
        print(step.title)
        rows = {"size": step.size, "needs": step.needs, "hours": step.hours, "state": state_of(step, steps[:number])}
        for what, text in rows.items():
            print(f"    {what:6} {text}")
    missing = find_missing(steps)
    print(f"\n{len(missing)} missing:" if missing else "\nNothing is missing.")
    for line in missing:
        print(f"  - {line}")
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
