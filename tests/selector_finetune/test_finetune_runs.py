"""Training runs on a tiny cross-encoder: in this process, and through torchrun with and without DeepSpeed."""

import hashlib
import importlib.metadata
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, RunsWhenUnpickled, cross_encoder_of, each, slow
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import open_locked, write_json
from gainRAG.common.settings import TRAINING_BATCH, TRAINING_FINISHED, TRAINING_SETTINGS
from gainRAG.selector_engine.selector import Selector, check_selector
from gainRAG.selector_finetune import runner
from gainRAG.selector_finetune.arguments import DataArguments, ModelArguments, TrainingArguments
from gainRAG.selector_finetune.trainer import SelectorTrainer
from gainRAG.selector_finetune.training_folder import LOCK, training_settings

WORDS = ["paris", "nile", "river", "capital", "france", "hamlet", "city", "year", "mountain", "physics", "prize"]
PUBLISHED = [
    "--overwrite_output_dir",
    "--knowledge_distillation",
    "True",
    "--query_max_len",
    512,
    "--passage_max_len",
    512,
    "--pad_to_multiple_of",
    8,
    "--fp16",
    "--gradient_accumulation_steps",
    1,
    "--dataloader_drop_last",
    "True",
    "--warmup_ratio",
    0.1,
    "--gradient_checkpointing",
    "--weight_decay",
    0.01,
]
NOWHERE = "nobody/no-such-model"


def has_deepspeed() -> bool:
    try:
        return bool(importlib.metadata.version("deepspeed"))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_deepspeed = pytest.mark.skipif(not has_deepspeed(), reason="DeepSpeed is not installed")


def records(count: int, passages: int = 6, seed: int = 0) -> list[dict]:
    """Short questions and passages with made-up teacher scores, the best first."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        scores = sorted((-draw.uniform(0.7, 6) for _ in range(passages)), reverse=True)
        texts = [" ".join([first, *draw.choices(WORDS, k=3)]) for first in draw.sample(WORDS, passages)]
        made.append(
            {
                "query": " ".join(draw.choices(WORDS, k=3)),
                "pos": texts[:1],
                "neg": texts[1:],
                "pos_scores": scores[:1],
                "neg_scores": scores[1:],
            }
        )
    return made


@pytest.fixture
def train(monkeypatch, tiny_reranker, write_jsonl, tmp_path):
    """Runs the entry point in this process and gives its output folder; flags given twice count the last time."""

    def run(*flags, output: str = "out", data: list[dict] | None = None) -> Path:
        path = write_jsonl("train.jsonl", data or records(10))
        standard = [
            "--model_name_or_path",
            tiny_reranker,
            "--train_data",
            path,
            "--output_dir",
            tmp_path / output,
            "--train_group_size",
            4,
            "--per_device_train_batch_size",
            4,
            "--learning_rate",
            "1e-3",
            "--num_train_epochs",
            2,
            "--logging_steps",
            1,
            "--disable_tqdm",
            "True",
            "--save_strategy",
            "no",
        ]
        monkeypatch.setattr(sys, "argv", ["selector_finetune", *map(str, [*standard, *flags])])
        runner.main()
        return tmp_path / output

    return run


@pytest.fixture(scope="session")
def steady_reranker(tiny_reranker, tmp_path_factory) -> Path:
    """The tiny cross-encoder without dropout, so that runs of any number of processes can be compared."""
    folder = shutil.copytree(tiny_reranker, tmp_path_factory.mktemp("steady") / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_last_batch_smaller_than_the_rest_counts_by_its_own_groups(train, steady_reranker):
    """10 questions in batches of 4: with a learning rate of nearly nothing, an epoch's mean over questions is fixed."""
    means = []
    for size, sizes in ((4, [4, 4, 2]), (5, [5, 5])):
        flags = ["--learning_rate", "1e-12", "--train_group_size", 99, "--num_train_epochs", 1]
        folder = train(
            "--model_name_or_path", steady_reranker, "--per_device_train_batch_size", size, *flags, output=f"out{size}"
        )
        assert len(losses(folder)) == len(sizes)
        means.append(np.average(losses(folder), weights=sizes))
    assert means[0] == pytest.approx(means[1], rel=1e-3)


def test_accumulated_batches_learn_as_one_batch_the_last_short_one_too(train, steady_reranker):
    """10 questions, 4 an update: the last update sees 2, or 3 and 1 of the second batch."""
    for questions in (10, 7):
        found = [
            losses(
                train(
                    "--model_name_or_path",
                    steady_reranker,
                    *["--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps],
                    data=records(questions),
                    output=f"{questions} {size}",
                )
            )
            for size, steps in ((4, 1), (2, 2))
        ]
        assert found[1] == pytest.approx(found[0], abs=1e-3)


def test_memory_that_runs_out_halves_the_batches_of_the_next_run_and_not_its_updates(
    train, monkeypatch, steady_reranker, tmp_path
):
    flags = ["--model_name_or_path", steady_reranker, "--dataloader_drop_last", "True"]
    flags += ["--resume_from_checkpoint", "auto", "--save_strategy", "steps", "--save_steps", 1]
    plain = SelectorTrainer.compute_loss
    limits = {"groups": 4, "updates": 2}  # after two updates the memory holds two groups at once, no more

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.state.global_step == limits["updates"]:
            limits["groups"] = 2
        if len(inputs["weights"]) > limits["groups"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, model, inputs, *args, **kwargs)

    whole = train(*flags, data=records(11), output="whole")
    monkeypatch.setattr(SelectorTrainer, "compute_loss", compute_loss)
    with pytest.raises(UserError, match="batch of 4 groups; the same command takes 2 at once now, as many an update"):
        train(*flags, data=records(11))
    resumed = train(*flags, data=records(11))
    assert len(losses(resumed)) == 4  # 11 questions, 4 an update, the rest dropped, twice
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-3)
    limits |= {"groups": 0, "updates": -1}
    for problem in ("of 4 groups; .* 2 at once", "of 2 groups; .* 1 at once", "of 1 groups; --gradient_checkpointing"):
        with pytest.raises(UserError, match=problem):
            train("--model_name_or_path", steady_reranker, data=records(11), output="plain")  # without any other flag
    for damaged in ("[1]", '{"per_device_train_batch_size": 0}'):
        (tmp_path / "plain" / TRAINING_BATCH).write_text(damaged)
        with pytest.raises(UserError, match="per_device_train_batch_size is no number from 1; delete the file"):
            train(output="plain")


def test_memory_that_runs_out_in_the_evaluation_names_its_own_flag(train, write_jsonl, monkeypatch, steady_reranker):
    def prediction_step(self, model, inputs, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SelectorTrainer, "prediction_step", prediction_step)
    held_out = ["--model_name_or_path", steady_reranker, "--eval_data", write_jsonl("dev.jsonl", records(3))]
    for epochs in (2, 0):
        with pytest.raises(UserError, match="8 groups of --eval_data, .*--per_device_eval_batch_size"):
            train(*held_out, "--num_train_epochs", epochs, "--overwrite_output_dir", output=str(epochs))


def test_resumed_run_gives_the_losses_of_an_uninterrupted_one(train, tmp_path):
    """Dropout is on, and the checkpoint lies in the middle of the second epoch."""
    flags = ["--save_strategy", "steps", "--save_steps", 4, "--num_train_epochs", 3]
    whole = train(*flags, output="whole")
    for name in ("model.safetensors", "checkpoint-8", "checkpoint-9"):
        gone = whole / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    expected = losses(whole)
    assert len(expected) == 9
    resumed = train(*flags, "--resume_from_checkpoint", "True", output="whole")
    assert losses(resumed) == pytest.approx(expected, abs=1e-5)


def test_published_flags_train_and_save_in_float32_on_a_cpu(train, caplog):
    caplog.set_level(logging.INFO)
    folder = train(*PUBLISHED)
    said = [record.message for record in caplog.records]
    assert sum("cut to the 512 tokens" in line for line in said) == 1
    if not torch.cuda.is_available():
        assert sum("--fp16 needs a CUDA GPU" in line for line in said) == 1
        assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}
    assert len(losses(folder)) == 4
    assert json.loads((folder / "train_results.json").read_text())["train_loss"] > 0


def test_saved_folder_scores_alike_in_flagembedding_and_sentence_transformers(train):
    from FlagEmbedding import FlagReranker
    from sentence_transformers import CrossEncoder

    folder = train()
    pairs = [(record["query"], text) for record in records(4, seed=1) for text in record["neg"]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        own = np.array([model(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs])
    flag = FlagReranker(str(folder), use_fp16=False, devices="cpu").compute_score(pairs)
    cross = CrossEncoder(str(folder), device="cpu").predict(pairs, activation_fn=torch.nn.Identity())
    assert np.ptp(own) > 1e-2
    np.testing.assert_allclose(flag, own, atol=1e-4)
    np.testing.assert_allclose(cross, own, atol=1e-4)


@pytest.mark.parametrize("kind", ["Qwen2", "GPT2", "RoBERTa"])
def test_other_kinds_of_cross_encoders_train_and_select(train, kind, tmp_path):
    start = cross_encoder_of(kind, tmp_path / "start")
    folder = train("--model_name_or_path", start, "--num_train_epochs", 1, "--passage_max_len", 60)
    assert AutoTokenizer.from_pretrained(folder).pad_token is not None
    pairs = [(record["query"], text) for record in records(4) for text in record["neg"]]
    assert np.ptp(Selector(str(folder), device="cpu").score(pairs)) > 1e-3


@pytest.mark.parametrize(("metric", "best"), [("top1_agreement", max), ("gain_regret", min), ("loss", min)])
def test_best_epoch_is_the_one_that_is_kept(train, write_jsonl, metric, best):
    held_out = write_jsonl("eval.jsonl", records(7, seed=3))
    folder = train(
        "--eval_data",
        held_out,
        "--eval_strategy",
        "epoch",
        "--save_strategy",
        "epoch",
        "--num_train_epochs",
        3,
        "--learning_rate",
        "2e-2",
        "--load_best_model_at_end",
        "--metric_for_best_model",
        metric,
        "--dataloader_drop_last",
        "True",
        "--per_device_eval_batch_size",
        5,
    )
    state = json.loads((folder / "trainer_state.json").read_text())
    found = [entry[f"eval_{metric}"] for entry in state["log_history"] if f"eval_{metric}" in entry]
    assert state["best_metric"] == best(found)
    kept = weights(Path(state["best_model_checkpoint"]))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(folder).items())
    results = json.loads((folder / "eval_results.json").read_text())
    assert results[f"eval_{metric}"] == pytest.approx(best(found))
    assert 0 < results["eval_ndcg@10"] <= 1


def test_collapsed_scores_are_warned_of(train, tiny_reranker, tmp_path, caplog):
    flat = AutoModelForSequenceClassification.from_pretrained(tiny_reranker)
    flat.classifier.out_proj.weight.data.zero_()
    flat.save_pretrained(tmp_path / "flat")
    AutoTokenizer.from_pretrained(tiny_reranker).save_pretrained(tmp_path / "flat")
    train("--model_name_or_path", tmp_path / "flat", "--learning_rate", "1e-12", "--num_train_epochs", 1)
    assert sum("all scores are one value" in record.message for record in caplog.records) == 3
    caplog.clear()
    train("--num_train_epochs", 1, output="well")
    assert not any("all scores are one value" in record.message for record in caplog.records)


def test_lengths_grouped_and_half_precision_checkpoints_train_as_well(train, tiny_reranker, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(tiny_reranker).half().save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny_reranker).save_pretrained(tmp_path / "half")
    folder = train(
        "--model_name_or_path",
        tmp_path / "half",
        "--train_sampling_strategy",
        "group_by_length",
        "--bf16",
        "--dataloader_num_workers",
        1,
        "--num_train_epochs",
        1,
    )
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}


@each(
    ("flags", "problem"),
    [
        (["--knowledge_distillation", "False"], "--knowledge_distillation False: without the teacher's scores"),
        (["--train_group_size", "1"], "--train_group_size 1: wanted a whole number from 2"),
        (["--shuffle_ratio", "0.5"], "--shuffle_ratio does nothing"),
        (["--model_type", "decoder"], "--model_type decoder"),
        (["--warmup_ratio", "1.5"], "--warmup_ratio 1.5"),
        (["--teacher_temperature", "0"], "--teacher_temperature 0"),
        (["--no_such_flag", "1"], "--no_such_flag"),
        (["--train_data", "missing.jsonl"], "missing.jsonl"),
        (["--eval_strategy", "epoch"], "--eval_strategy epoch needs --eval_data"),
        (["--resume_from_checkpoint", "True"], "holds no whole checkpoint"),
        (["--resume_from_checkpoint", "nowhere"], "nowhere: holds no trainer_state.json"),
        (
            ["--dataloader_drop_last", "True", "--per_device_train_batch_size", "11"],
            "holds 10 questions.*scripts: BATCH",
        ),
        (["--deepspeed", "missing.json"], "--deepspeed"),
    ],
)
def test_mistakes_are_named_before_a_model_loads(train, flags, problem):
    with pytest.raises(UserError, match=problem):
        train("--model_name_or_path", NOWHERE, *flags)


def test_bad_record_is_named_before_a_model_loads(train):
    data = records(3)
    data[1]["neg_scores"][2] = float("nan")
    with pytest.raises(UserError, match=r"train\.jsonl:2: field 'neg_scores\[2\]'"):
        train("--model_name_or_path", NOWHERE, data=data)


def test_output_folder_with_files_needs_overwriting_and_loses_old_checkpoints(train, tmp_path):
    stale = tmp_path / "out" / "checkpoint-999"
    stale.mkdir(parents=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite_output_dir"):
        train("--model_name_or_path", NOWHERE)
    folder = train("--overwrite_output_dir", "--num_train_epochs", 1)
    assert not stale.exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_checkpoint_that_would_run_code_is_refused(train, tmp_path):
    checkpoint = train("--max_steps", 2, "--save_strategy", "steps", "--save_steps", 1) / "checkpoint-1"
    torch.save(RunsWhenUnpickled(tmp_path / "it_ran"), checkpoint / "optimizer.pt")
    with pytest.raises(UserError, match="checkpoint-1: the checkpoint is damaged, or holds more than tensors"):
        train("--max_steps", 2, "--resume_from_checkpoint", checkpoint)
    assert not (tmp_path / "it_ran").exists()


def test_a_run_goes_on_with_the_same_settings_only_and_alone(train, tmp_path):
    out = tmp_path / "out"
    (out / "checkpoint-3").mkdir(parents=True)
    (out / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3}')
    write_json(out / TRAINING_SETTINGS, {"flags": {"learning_rate": 0.5}})
    resume = ["--model_name_or_path", NOWHERE, "--resume_from_checkpoint", "True"]
    with pytest.raises(UserError, match=r"training with other settings \(.*learning_rate: 0\.5 then, 0\.001 now"):
        train(*resume)
    with (
        open_locked(out / LOCK, out, "w"),
        pytest.raises(UserError, match="another process is writing"),
    ):
        train(*resume)
    train("--resume_from_checkpoint", "True", "--overwrite_output_dir", "--num_train_epochs", 1)
    assert not (out / "checkpoint-3").exists()
    assert len(losses(out)) == 3


def test_a_checkpoint_named_by_its_path_may_be_gone_on_from_in_another_way(train, caplog):
    checkpoint = train("--max_steps", 2, "--save_strategy", "steps", "--save_steps", 1, output="first") / "checkpoint-1"
    train("--max_steps", 2, "--resume_from_checkpoint", checkpoint, output="same")
    assert "other settings" not in caplog.text
    train("--max_steps", 3, "--resume_from_checkpoint", checkpoint, output="longer")
    assert "first was trained with other settings (max_steps: 2 then, 3 now): what is new counts now" in caplog.text


FULL_DISK = """
mount -t tmpfs -o size=700k tmpfs "$1"
"${@:2}"; echo "exit $?"
find "$1" -name trainer_state.json
mount -o remount,size=20m "$1"
"${@:2}"; echo "exit $?"
sha256sum <"$1/out/model.safetensors"
"""


@slow
def test_training_goes_on_after_a_full_disk(own_mounts, tmp_path, tiny_reranker, write_jsonl, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = tmp_path / "small"
    small.mkdir()
    flags = ["--model_name_or_path", tiny_reranker, "--train_data", write_jsonl("train.jsonl", records(10))]
    flags += ["--per_device_train_batch_size", 4, "--disable_tqdm", "True"]
    flags += ["--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 1]
    flags += ["--resume_from_checkpoint", "True", "--overwrite_output_dir", "--output_dir"]
    command = ["env", sys.executable, "-m", "gainRAG.selector_finetune", *map(str, flags)]
    script = [*own_mounts, "bash", "-c", FULL_DISK, "bash"]
    done = subprocess.run([*script, small, *command, small / "out"], cwd=REPOSITORY, capture_output=True, text=True)
    printed = done.stdout.splitlines()
    assert [line for line in printed if line.startswith("exit")] == ["exit 2", "exit 0"], done.stderr
    assert done.stderr.count("out: cannot be written, the disk is full or your quota used up; make space") == 1
    assert "Traceback" not in done.stderr
    assert str(small / "out/checkpoint-1/trainer_state.json") in printed
    assert subprocess.run([*command, tmp_path / "whole"], cwd=REPOSITORY, capture_output=True).returncode == 0
    whole = hashlib.sha256((tmp_path / "whole" / "model.safetensors").read_bytes()).hexdigest()
    assert printed[-1].split()[0] == whole


def test_no_epoch_measures_the_model_and_trains_nothing(train, write_jsonl, steady_reranker):
    flags = ["--num_train_epochs", 0, "--eval_data", write_jsonl("eval.jsonl", records(5))]
    folder = train(*flags, "--model_name_or_path", steady_reranker, output="start")
    assert not (folder / "model.safetensors").exists()
    measured = json.loads((folder / "eval_results.json").read_text())
    trained = train("--model_name_or_path", steady_reranker, output="trained")
    again = json.loads((train(*flags, "--model_name_or_path", trained) / "eval_results.json").read_text())
    assert measured["eval_loss"] != again["eval_loss"] and again["eval_gain_regret"] >= 0
    with pytest.raises(UserError, match="--num_train_epochs 0 only measures the model, on --eval_data"):
        train("--num_train_epochs", 0)


# --- through torchrun -------------------------------------------------------------------------------------------


@pytest.fixture
def torchrun(run_python, tmp_path):
    """Runs the short form of the command from gainRAG/ and gives the output folder."""

    def run(processes: int, *flags, output: str = "out") -> Path:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = run_python(
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            processes,
            "-m",
            "selector_finetune",
            "--output_dir",
            tmp_path / output,
            "--overwrite_output_dir",
            "--logging_steps",
            1,
            "--disable_tqdm",
            "True",
            *flags,
            folder="gainRAG",
            env={"PATH": path, "TORCH_EXTENSIONS_DIR": str(tmp_path / "compiled")},
            timeout=1800,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / output

    return run


@needs_deepspeed
def test_published_command_overfits_twenty_groups(torchrun, steady_reranker, write_jsonl):
    groups = [{**record, "pos_scores": [-0.1]} for record in records(20)]  # no second passage is nearly as good
    data = write_jsonl("train.jsonl", groups)
    folder = torchrun(
        1,
        "--model_name_or_path",
        steady_reranker,
        "--train_data",
        data,
        "--deepspeed",
        "../deepspeed/ds_stage0.json",
        *PUBLISHED,
        "--train_group_size",
        16,
        "--per_device_train_batch_size",
        8,
        "--save_steps",
        1000,
        "--learning_rate",
        "5e-3",
        "--num_train_epochs",
        30,
        "--eval_data",
        data,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        1000,
    )
    assert not (folder.parent / "compiled").exists()  # nobody waits for a compiler
    results = json.loads((folder / "eval_results.json").read_text())
    assert results["eval_top1_agreement"] > 0.95
    assert results["eval_gain_regret"] < 0.05
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 1


@pytest.fixture(scope="module")
def same_run():
    """Flags of runs to compare: 8 questions an update, however they are spread."""
    return [
        "--train_group_size",
        4,
        "--learning_rate",
        "1e-3",
        "--num_train_epochs",
        2,
        "--save_strategy",
        "no",
        "--dataloader_drop_last",
        "True",
    ]


@needs_deepspeed
@pytest.mark.parametrize(
    ("stage", "processes"), [pytest.param(1, 1, marks=slow), pytest.param(2, 2, marks=slow), (3, 2)]
)
def test_zero_stages_learn_as_one_plain_process_and_save_whole_weights(
    stage, processes, torchrun, train, steady_reranker, write_jsonl, same_run
):
    expected = train(
        "--model_name_or_path",
        steady_reranker,
        "--per_device_train_batch_size",
        8,
        *same_run,
        data=records(17),
        output="plain",
    )
    data = write_jsonl("train.jsonl", records(17))
    folder = torchrun(
        processes,
        "--model_name_or_path",
        steady_reranker,
        "--train_data",
        data,
        "--deepspeed",
        f"../deepspeed/ds_stage{stage}.json",
        "--per_device_train_batch_size",
        8 // processes,
        *same_run,
    )
    assert len(losses(folder)) == 4
    assert losses(folder) == pytest.approx(losses(expected), abs=1e-3)
    plain = weights(expected)
    assert {name: tensor.shape for name, tensor in weights(folder).items()} == {k: v.shape for k, v in plain.items()}
    assert all(torch.allclose(tensor, plain[name], atol=5e-3) for name, tensor in weights(folder).items())
    AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("drop_last", [pytest.param(True, marks=slow), False])
def test_two_processes_without_deepspeed_learn_as_one(
    drop_last, torchrun, train, steady_reranker, write_jsonl, same_run
):
    """17 questions leave one over, which counts once however many processes share the last update."""
    flags = ["--model_name_or_path", steady_reranker, *same_run, "--dataloader_drop_last", drop_last]
    expected = train("--per_device_train_batch_size", 8, *flags, data=records(17), output="plain")
    data = write_jsonl("train.jsonl", records(17))
    folder = torchrun(2, "--train_data", data, "--per_device_train_batch_size", 4, *flags)
    assert len(losses(folder)) == (4 if drop_last else 6)
    assert losses(folder) == pytest.approx(losses(expected), abs=1e-3)
    plain = weights(expected)
    assert all(torch.allclose(tensor, plain[name], atol=5e-3) for name, tensor in weights(folder).items())


def test_resuming_auto_does_what_is_left_to_do_and_refuses_other_settings(train, caplog):
    auto = ["--resume_from_checkpoint", "auto"]
    out = train(*auto)
    trained = (out / "model.safetensors").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        train(*auto)
    assert f"{out} is complete already, with the same settings" in caplog.text
    with pytest.raises(
        UserError, match=r"out holds a training with other settings .*num_train_epochs: 2\S* then, 1\S* now"
    ):
        train(*auto, "--num_train_epochs", 1)
    assert (out / "model.safetensors").stat().st_mtime_ns == trained
    train(*auto, "--overwrite_output_dir")
    assert (out / "model.safetensors").stat().st_mtime_ns == trained
    train(*auto, "--num_train_epochs", 1, "--overwrite_output_dir")
    assert len(losses(out)) == 3
    (out / TRAINING_FINISHED).unlink()  # as if killed before its first checkpoint
    train(*auto, "--num_train_epochs", 1)
    assert (out / TRAINING_FINISHED).exists()


def test_a_start_without_a_rerankers_head_is_named(train, tiny_encoder, caplog):
    train("--model_name_or_path", tiny_encoder, "--max_steps", 1)
    assert "is no reranker: its head starts at random" in caplog.text


def test_a_diverged_training_is_an_error_and_leaves_no_selector(train, tmp_path, caplog):
    with pytest.raises(UserError, match="the training diverged"):
        train("--learning_rate", "1e30", "--max_grad_norm", 0)
    assert "a loss was not a finite number" in caplog.text
    assert not (tmp_path / "out" / TRAINING_FINISHED).exists()


def test_a_start_that_the_training_would_delete_is_refused(train):
    out = train("--save_strategy", "steps", "--save_steps", 2)
    checkpoint = out / "checkpoint-2"
    with pytest.raises(UserError, match=r"checkpoint-2: a new training deletes the checkpoints of --output_dir"):
        train("--model_name_or_path", checkpoint, "--overwrite_output_dir")
    assert (checkpoint / "model.safetensors").exists()


def test_an_unfinished_training_is_no_selector(train):
    out = train()
    assert check_selector(str(out)) == str(out)
    (out / TRAINING_FINISHED).unlink()  # as while another training writes over the weights
    with pytest.raises(UserError, match="its training is unfinished"):
        check_selector(str(out))


def test_a_finished_training_is_measured_when_asked_again(train, write_jsonl):
    flags = ["--resume_from_checkpoint", "auto", "--eval_data", write_jsonl("eval.jsonl", records(5))]
    out = train(*flags)
    measured = json.loads((out / "eval_results.json").read_text())
    (out / "eval_results.json").unlink()  # as if it died while it measured
    trained = (out / "model.safetensors").stat().st_mtime_ns
    train(*flags)
    again = json.loads((out / "eval_results.json").read_text())
    assert again["eval_loss"] == pytest.approx(measured["eval_loss"], abs=1e-5)
    assert (out / "model.safetensors").stat().st_mtime_ns == trained
    assert (out / TRAINING_FINISHED).exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_that_is_cut_short_is_passed_over(train, name):
    auto = ["--resume_from_checkpoint", "auto", "--save_strategy", "steps", "--save_steps", 2]
    out = train(*auto)
    whole = losses(out)
    last = sorted(out.glob("checkpoint-*"))[-1]
    with (last / name).open("r+b") as file:
        file.truncate((last / name).stat().st_size // 2)
    (out / TRAINING_FINISHED).unlink()  # as if the machine died then
    train(*auto)
    assert losses(out) == pytest.approx(whole, abs=1e-6)


def test_a_finished_selector_that_is_cut_short_is_trained_on_from_its_last_checkpoint(train):
    auto = ["--resume_from_checkpoint", "auto", "--save_strategy", "steps", "--save_steps", 2]
    out = train(*auto)
    saved = out / "model.safetensors"
    whole = saved.read_bytes()
    saved.write_bytes(whole[: len(whole) // 2])  # the machine died before all was on the disk
    train(*auto)
    assert saved.read_bytes() == whole


def test_a_deepspeed_files_optimiser_and_schedule_are_settings(tmp_path, tiny_reranker, write_jsonl):
    data = DataArguments(train_data=[str(write_jsonl("train.jsonl", records(2)))])
    training = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)

    def flags_with(deepspeed) -> dict:
        training.deepspeed = deepspeed
        return training_settings(ModelArguments(model_name_or_path=tiny_reranker), data, training)["flags"]

    published = json.loads((REPOSITORY / "deepspeed" / "ds_stage0.json").read_text("utf-8"))
    (tmp_path / "own.json").write_text(json.dumps({**published, "optimizer": {"type": "AdamW"}}), "utf-8")
    assert flags_with(None) == flags_with(published) == flags_with(str(REPOSITORY / "deepspeed" / "ds_stage3.json"))
    assert flags_with(str(tmp_path / "own.json"))["deepspeed optimizer"] == {"type": "AdamW"}


def test_checkpoints_of_other_names_are_left_alone(train, tmp_path):
    flags = ["--save_strategy", "steps", "--save_steps", 2]
    out = train(*flags)
    shutil.copytree(out / "checkpoint-2", out / "checkpoint-2-best")
    (out / "checkpoint-notes").write_text("mine")
    whole = losses(out)
    assert losses(train(*flags, "--resume_from_checkpoint", "True")) == pytest.approx(whole, abs=1e-6)
    train(*flags, "--overwrite_output_dir", "--num_train_epochs", 1)
    assert (out / "checkpoint-2-best" / "trainer_state.json").exists()
    assert (out / "checkpoint-notes").read_text() == "mine"
    assert not (out / "checkpoint-6").exists()


def test_a_limit_of_checkpoints_counts_the_trainers_own_and_keeps_the_best(train, write_jsonl, tmp_path):
    (tmp_path / "out" / "checkpoint-2-best").mkdir(parents=True)
    flags = ["--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 2, "--overwrite_output_dir"]
    out = train(*flags)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [
        "checkpoint-2-best",
        "checkpoint-5",
        "checkpoint-6",
    ]
    best = ["--eval_data", write_jsonl("eval.jsonl", records(5)), "--eval_strategy", "steps", "--eval_steps", 1]
    best += ["--load_best_model_at_end", "--metric_for_best_model", "loss", "--learning_rate", "0.5"]
    out = train(*flags, *best)
    kept = {path.name for path in out.glob("checkpoint-*")}
    state = json.loads((out / "trainer_state.json").read_text())
    assert kept == {"checkpoint-2-best", "checkpoint-6", Path(state["best_model_checkpoint"]).name} and len(kept) == 3


def test_settings_do_not_depend_on_spelling_and_other_versions_only_stop_an_unfinished_training(
    train, tiny_reranker, tmp_path, monkeypatch, caplog
):
    auto = ["--resume_from_checkpoint", "auto", "--save_strategy", "steps", "--save_steps", 2]
    out = train(*auto)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_reranker, "start")
    (tmp_path / "start" / "README.md").write_text("downloaded")
    shutil.copy("train.jsonl", "same.jsonl")
    spelled = [*auto, "--model_name_or_path", "./start", "--train_data", "same.jsonl", "--output_dir", "./out"]
    saved = (out / "model.safetensors").stat().st_mtime_ns
    train(*spelled)
    settings = json.loads((out / TRAINING_SETTINGS).read_text())
    write_json(out / TRAINING_SETTINGS, {**settings, "versions": {**settings["versions"], "torch": "1.0"}})
    train(*spelled)
    assert (out / "model.safetensors").stat().st_mtime_ns == saved
    assert "made with other versions of libraries (torch: '1.0' then" in caplog.text
    (out / TRAINING_FINISHED).unlink()
    with pytest.raises(UserError, match="torch: '1.0' then"):
        train(*spelled)


def test_resuming_auto_takes_up_the_last_checkpoint(train):
    flags = ["--resume_from_checkpoint", "auto", "--save_strategy", "steps", "--save_steps", 2]
    out = train(*flags)
    whole = losses(out)
    shutil.rmtree(out / "checkpoint-6")
    (out / TRAINING_FINISHED).unlink()
    kept = (out / "checkpoint-4").stat().st_mtime_ns
    train(*flags)
    assert losses(out) == whole
    assert (out / "checkpoint-4").stat().st_mtime_ns == kept
