"""The paper's downloads and models in miniature, under the published names and in the published formats."""

import csv
import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from conftest import SENTENCES, byte_level_tokenizer

DIMENSIONS = 32
PASSAGES = [
    (str(number), f'{sentence} It says "{number}" and e.', '"Weird" title' if number % 5 == 0 else "T")
    for number, sentence in enumerate(SENTENCES * 4, 1)
]
HOTPOTQA = [
    {"_id": f"hotpot{n}", "question": f"{SENTENCES[n % 8][:30]} {n}?", "answer": "e", "type": "bridge",
     "level": "easy", "supporting_facts": [["T1", 0]], "context": [["T1", [SENTENCES[n % 8]]]]}
    for n in range(30)
]  # fmt: skip
WEBQUESTIONS = [
    {
        "utterance": f"where is {word}?",
        "url": "http://here",
        "targetValue": f'(list (description "{word} e") (description e))',
    }
    for word in ("Paris", "Berlin", "Egypt", "Hamlet")
]
IRCOT = [
    {"dataset": "any", "question_id": f"i{n}", "question_text": f"Who is {n}?", "contexts": [],
     "answers_objects": [{"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": ["e"]}]}
    for n in range(3)
]  # fmt: skip
PACKAGED = ("topics.nq.test.txt", "topics.dpr.trivia.test.txt", "topics.dpr.wq.test.txt", "topics.dpr.squad.test.txt")
WHEEL = "pyserini-0.14.0-py3-none-any.whl"

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def write_downloads(folder: Path) -> dict[str, str]:
    """Writes what the servers of the paper's files would offer.

    Returns:
        The variables of download_data.sh -> the file's place below `folder`.
    """
    with gzip.open(folder / "psgs_w100.tsv.gz", "wt", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerows([("id", "text", "title"), *PASSAGES])
    write_embeddings(folder / "wikipedia_embeddings.tar")
    (folder / "hotpot_train_v1.1.json").write_text(json.dumps(HOTPOTQA), "utf-8")
    (folder / "webquestions").write_text(json.dumps(WEBQUESTIONS), "utf-8")
    for name in ("hotpotqa", "2wikimultihopqa"):
        (folder / "ircot" / name).mkdir(parents=True)
        lines = "".join(json.dumps(record) + "\n" for record in IRCOT)
        (folder / "ircot" / name / "test_subsampled.jsonl").write_text(lines, "utf-8")
    write_wheel(folder)
    return {
        "DPR_URL": "psgs_w100.tsv.gz",
        "EMBEDDINGS_URL": "wikipedia_embeddings.tar",
        "HOTPOTQA_URL": "hotpot_train_v1.1.json",
        "WEBQUESTIONS_URL": "webquestions",
        "IRCOT_URL": "ircot",
        "PIP_INDEX_URL": "simple",
    }


def write_embeddings(path: Path) -> None:
    """A tar of two pickles of (ids, float32 vectors), as Contriever's authors publish them."""
    vectors = np.random.default_rng(0).normal(size=(len(PASSAGES), DIMENSIONS)).astype("float32")
    ids = [passage_id for passage_id, _, _ in PASSAGES]
    half = len(ids) // 2
    with tarfile.open(path, "w") as tar:
        for number, part in enumerate((slice(half), slice(half, None))):
            content = pickle.dumps((ids[part], vectors[part]))
            info = tarfile.TarInfo(f"wikipedia_embeddings/passages_{number:02d}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_wheel(folder: Path) -> None:
    """The wheel with DPR's question sets, in an index that pip can read."""
    jar = io.BytesIO()
    with zipfile.ZipFile(jar, "w") as inner:
        for name in PACKAGED:
            questions = "".join(f"what is {name} {n}\t['e', 'no']\n" for n in range(3))
            inner.writestr(f"topics-and-qrels/{name}", questions)
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("pyserini/resources/jars/anserini-0.13.5-fatjar.jar", jar.getvalue())
        about = "pyserini-0.14.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: pyserini\nVersion: 0.14.0\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    (folder / "simple" / "pyserini").mkdir(parents=True)
    (folder / "simple" / "pyserini" / "index.html").write_text(f'<a href="/{WHEEL}">{WHEEL}</a>', "utf-8")


def write_llama3(folder: Path) -> None:
    """A Llama with Llama-3's special tokens and kind of chat template, system turn included; random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(1)
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(special),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=LLAMA3_TEMPLATE,
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
