"""All stages by their command lines, on a dozen passages and tiny random models: what one writes the next reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

# "e" stands in nearly everything that a random LLM says: the filter keeps questions without the LLM knowing anything.
QUESTIONS = [
    ("Where does the Seine flow?", ["Paris", "e"]),
    ("What is the capital of Germany?", ["Berlin", "e"]),
    ("Which river flows through Egypt?", ["The Nile", "e"]),
    ("Who won the Nobel Prize in 1903?", ["Marie Curie", "e"]),
    ("Who wrote Hamlet?", ["Shakespeare", "e"]),
    ("What is the highest mountain?", ["Mount Everest", "e"]),
    ("Who painted the Mona Lisa?", ["Leonardo", "e"]),
    ("What is the largest ocean?", ["the Pacific", "e"]),
]
PASSAGES = [
    ("Paris", "Paris is the capital of France and lies on the river Seine."),
    ("Berlin", "Berlin is the capital of Germany and lies on the river Spree."),
    ("Nile", "The Nile is a river in Africa; it flows through Egypt to the sea."),
    ("Marie Curie", "Marie Curie won the Nobel Prize in physics in 1903."),
    ("Hamlet", "William Shakespeare wrote the play Hamlet around 1600."),
    ("Everest", "Mount Everest is the highest mountain on Earth."),
    ("Mona Lisa", "Leonardo da Vinci painted the Mona Lisa in Florence."),
    ("Pacific", "The Pacific is the largest of the oceans."),
    ("Rome", "Rome is the capital of Italy; the Tiber flows through it."),
    ("Amazon", "The Amazon carries more water than any other river."),
    ("Bach", "Johann Sebastian Bach wrote the Brandenburg Concertos."),
    ("K2", "K2 is the second highest mountain on Earth, in the Karakoram."),
]


class Pipeline:
    """Runs commands as a user does, in one folder of files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(self, command: list, place: str = "gainRAG") -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=REPOSITORY / place, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
        return done.stdout

    def stage(self, module: str, *flags) -> str:
        return self.run([sys.executable, "-m", module, *flags])

    def tool(self, script: str, *flags) -> str:
        return self.run([sys.executable, script, *flags], "data")

    def records(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / name).open("rb")]


@pytest.fixture
def pipeline(tmp_path):
    rows = [{"id": f"q{n}", "question": text, "answers": answers} for n, (text, answers) in enumerate(QUESTIONS)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    lines = ["id\ttext\ttitle", *(f'{n}\t"{text}"\t{title}' for n, (title, text) in enumerate(PASSAGES, 1))]
    (tmp_path / "corpus.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    return Pipeline(tmp_path)


def test_all_stages_in_a_row(pipeline, tiny_encoder, tiny_llama, tiny_reranker):
    at = pipeline.folder
    encoder = ["--model_name_or_path", tiny_encoder, "--passages", at / "corpus.tsv", "--device", "cpu"]
    lm = ["--task", "HotpotQA", "--lm_type", tiny_llama, "--device", "cpu", "--dtype", "float32"]

    pipeline.stage("retrieval_engine.passage_embed", *encoder, "--output_dir", at / "embeddings")
    pipeline.stage(
        "retrieval_engine.retrieval",
        *encoder,
        "--passages_embeddings",
        at / "embeddings",
        "--data_path",
        at / "questions.jsonl",
        "--output_dir",
        at / "retrieved",
        "--n_docs",
        6,
    )
    retrieved = pipeline.records("retrieved/questions.jsonl")
    assert [record["id"] for record in retrieved] == [f"q{n}" for n in range(len(QUESTIONS))]
    assert all(len(record["ctxs"]) == 6 for record in retrieved)
    texts = {text for _, text in PASSAGES}
    assert all(passage["text"] in texts for record in retrieved for passage in record["ctxs"])

    data = ["--data_path", at / "retrieved" / "questions.jsonl"]
    pipeline.stage(
        "llm_supervision.construct_hf",
        *data,
        "--output_path",
        at / "gains.jsonl",
        "--num_passages",
        5,
        "--background_tokens",
        12,
        *lm,
    )
    gains = pipeline.records("gains.jsonl")
    assert all(sum(not passage["is_pseudo"] for passage in record["passages"]) == 5 for record in gains)
    pipeline.tool("data_filter.py", "--data_path", at / "gains.jsonl", "--output_path", at / "kept.jsonl")
    assert len(pipeline.records("kept.jsonl")) >= 3
    pipeline.tool("data2selector.py", "--data_path", at / "kept.jsonl", "--output_path", at / "train.jsonl")

    torchrun = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", 1, "-m"]
    pipeline.run(
        [
            *torchrun,
            "selector_finetune",
            "--model_name_or_path",
            tiny_reranker,
            "--train_data",
            at / "train.jsonl",
            "--output_dir",
            at / "selector",
            "--overwrite_output_dir",
            "--train_group_size",
            4,
            "--knowledge_distillation",
            "True",
            "--query_max_len",
            64,
            "--passage_max_len",
            64,
            "--pad_to_multiple_of",
            8,
            "--learning_rate",
            "6e-5",
            "--num_train_epochs",
            2,
            "--per_device_train_batch_size",
            2,
            "--gradient_accumulation_steps",
            1,
            "--dataloader_drop_last",
            "True",
            "--warmup_ratio",
            0.1,
            "--weight_decay",
            0.01,
            "--logging_steps",
            1,
            "--save_steps",
            1000,
            "--use_cpu",
            "True",
        ]
    )
    assert (at / "selector" / "model.safetensors").read_bytes() != (tiny_reranker / "model.safetensors").read_bytes()

    pipeline.stage(
        "selector_engine.selector_gainRag",
        "--model_name_or_path",
        at / "selector",
        *data,
        "--output_path",
        at / "selected.jsonl",
        "--K_docs",
        1,
        "--background_tokens",
        12,
        *lm[2:],
    )
    selected = pipeline.records("selected.jsonl")
    assert all(len(record["ctxs"]) == 1 and "selector_score" in record["ctxs"][0] for record in selected)
    shown = pipeline.stage(
        "rag_workflow.rag_generation",
        "--data_path",
        at / "selected.jsonl",
        "--K_docs",
        1,
        "--output_path",
        at / "answers.jsonl",
        *lm,
    )
    assert f"HotpotQA: {len(QUESTIONS)} questions" in shown
    answers = pipeline.records("answers.jsonl")
    assert all(record["ctxs"][0]["text"] in answer["prompt"] for record, answer in zip(selected, answers, strict=True))

    shown = pipeline.stage(
        "rag_workflow.run_baselines",
        *data,
        "--output_dir",
        at / "table",
        "--gains_path",
        at / "gains.jsonl",
        "--selections",
        f"gainrag={at / 'selected.jsonl'}",
        *lm,
    )
    for method in ("No retrieval", "Standard RAG", "GainRAG", "Best by gain"):
        assert f"| {method}" in shown
    assert (at / "table" / "gainrag.jsonl").read_bytes() == (at / "answers.jsonl").read_bytes()
    assert not list(at.rglob("*unfinished*"))
    assert not list(at.rglob("*partial*"))
