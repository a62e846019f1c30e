"""From a corpus to retrieved passages with a tiny encoder: resumed, refused, planned, and right against NumPy."""

import json
import pickle

import numpy as np
import pytest
import torch
from conftest import each

from gainRAG.common.cli import UserError
from gainRAG.evaluation.recall import has_answer
from gainRAG.retrieval_engine import modeling, passage_embed, retrieval
from gainRAG.retrieval_engine.bm25 import words
from gainRAG.retrieval_engine.modeling import Encoder, EncoderOptions
from gainRAG.retrieval_engine.normalize import normalize_text

PASSAGES = [
    {"id": f"p{i}", "title": title, "text": text}
    for i, (title, text) in enumerate(
        [
            ("Paris", "Paris is the capital of France."),
            ("Berlin", "Berlin is the capital of Germany, a country in central Europe."),
            ("Nile", "The Nile is a river in Africa."),
            ("Curie", "Marie Curie won the Nobel Prize in physics in 1903 and in chemistry in 1911."),
            ("Hamlet", "William Shakespeare wrote Hamlet around 1600."),
            ("Everest", "Mount Everest is the highest mountain on Earth."),
            ("Paris", "Paris is the capital of France."),
        ]
    )
]
QUESTIONS = [
    {"id": "q1", "question": "what is the capital of France?", "answers": ["Paris"], "level": "easy"},
    {"id": "q2", "question": "who wrote Hamlet?", "answer": "Shakespeare"},
    {"id": "q3", "question": "highest mountain?", "golden_answers": ["Mount Everest", "Everest"]},
]


@pytest.fixture
def call(monkeypatch):
    """Runs a stage's main() with arguments."""

    def run(stage, *arguments):
        monkeypatch.setattr("sys.argv", ["stage", *map(str, arguments)])
        stage.main()

    return run


@pytest.fixture
def setting(tmp_path, tiny_encoder, write_jsonl, call):
    """Corpus, questions and embeddings; gives the flags of a retrieval over them."""

    def make(*embed_flags, embeddings="emb"):
        corpus = write_jsonl("corpus.jsonl", PASSAGES)
        common = ["--model_name_or_path", tiny_encoder, "--passages", corpus, "--device", "cpu", "--dtype", "float32"]
        call(passage_embed, *common, "--output_dir", tmp_path / embeddings, "--shard_size", 3, *embed_flags)
        questions = write_jsonl("questions.jsonl", QUESTIONS)
        return [*common, "--passages_embeddings", tmp_path / embeddings, "--data_path", questions,
                "--output_dir", tmp_path / "out"]  # fmt: skip

    return make


def test_embedding_resumes_at_the_next_shard(tmp_path, setting, monkeypatch):
    encode, calls = Encoder.encode, []

    def dies_at_the_third(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *arguments)

    monkeypatch.setattr(Encoder, "encode", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        setting()
    assert not (tmp_path / "emb/shards.jsonl").exists()
    setting()
    assert len(calls) == 4  # the third shard alone
    setting()
    assert len(calls) == 4
    with pytest.raises(UserError, match="normalize: False then, True now"):
        setting("--normalize")
    setting(embeddings="whole")
    for number in range(3):
        resumed, whole = (np.load(tmp_path / folder / f"passages_0000{number}.npy") for folder in ("emb", "whole"))
        assert np.array_equal(resumed, whole)


def test_overwriting_that_is_killed_leaves_no_mixed_embeddings(setting, call, monkeypatch):
    flags = setting()
    encode, calls = Encoder.encode, []

    def dies_at_the_second(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, *arguments)

    monkeypatch.setattr(Encoder, "encode", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        setting("--overwrite", "--pooling", "cls")
    with pytest.raises(UserError, match="its embeddings are unfinished; run the same passage_embed command again"):
        call(retrieval, *flags, "--n_docs", 3)
    setting("--overwrite", "--pooling", "cls")
    assert len(calls) == 4  # the first shard was there already
    call(retrieval, *flags, "--n_docs", 3)


@each("pooling", ["mean", "cls"])
@each("normalize", [True, False])
def test_vectors_against_one_text_at_a_time(tiny_encoder, pooling, normalize):
    texts = [passage["text"] * (1 + i % 3) for i, passage in enumerate(PASSAGES)]
    encoder = Encoder(
        EncoderOptions(str(tiny_encoder), pooling, normalize, batch_size=3, device="cpu", dtype="float32")
    )
    vectors = encoder.encode(texts)
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            hidden = encoder.model(**encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
        wanted = hidden.mean(0) if pooling == "mean" else hidden[0]
        np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted) if normalize else wanted, atol=1e-5)


def test_vectors_keep_the_order_of_texts_tokenised_in_groups(tiny_encoder, monkeypatch):
    monkeypatch.setattr(modeling, "TOKENISED_AT_ONCE", 2)
    encoder = Encoder(EncoderOptions(str(tiny_encoder), batch_size=3, device="cpu", dtype="float32"))
    texts, done = [passage["text"] * (1 + i % 3) for i, passage in enumerate(PASSAGES)], []
    vectors = encoder.encode(texts, done.append)
    assert sum(done) == len(texts)
    np.testing.assert_allclose(vectors, np.concatenate([encoder.encode([text]) for text in texts]), atol=1e-5)


@pytest.mark.parametrize("normalize", [[], ["--normalize"]])
def test_retrieval_equals_brute_force(tmp_path, setting, call, read_jsonl, tiny_encoder, normalize):
    flags = setting(*normalize)
    call(retrieval, *flags, "--n_docs", 5)
    options = EncoderOptions(str(tiny_encoder), "mean", bool(normalize), device="cpu", dtype="float32")
    encoder = Encoder(options)
    vectors = encoder.encode([options.passage_text(passage) for passage in PASSAGES])
    scores = encoder.encode([question["question"] for question in QUESTIONS]) @ vectors.T
    records = read_jsonl(tmp_path / "out/questions.jsonl")
    for record, question, row in zip(records, QUESTIONS, scores, strict=True):
        assert {key: record[key] for key in question} == question
        found = [int(ctx["id"].removeprefix("p")) for ctx in record["ctxs"]]
        assert len(set(found)) == 5
        # float16 keeps 11 bits; two equal texts may change places, as they were encoded in different batches
        np.testing.assert_allclose([ctx["score"] for ctx in record["ctxs"]], -np.sort(-row)[:5], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(row[found], -np.sort(-row)[:5], rtol=2e-3, atol=2e-3)
        for ctx in record["ctxs"]:
            assert {key: ctx[key] for key in ("id", "title", "text")} in PASSAGES
            assert ctx["hasanswer"] == has_answer(ctx["text"], record["answers"])
    first = np.mean([any(ctx["hasanswer"] for ctx in record["ctxs"][:1]) for record in records])
    recall = json.loads((tmp_path / "out/recall.json").read_text())["questions.jsonl"]
    assert list(recall) == ["1", "5"]
    assert recall["1"] == pytest.approx(first)


def test_finished_work_is_not_done_again_and_other_settings_are_refused(setting, call, monkeypatch):
    flags = setting()
    call(retrieval, *flags, "--n_docs", 3)
    monkeypatch.setattr(retrieval, "find", None)
    call(retrieval, *flags, "--n_docs", 3)
    with pytest.raises(UserError, match="n_docs: 3 then, 4 now"):
        call(retrieval, *flags, "--n_docs", 4)


def test_several_files_in_one_search(tmp_path, setting, call, write_jsonl, read_jsonl):
    flags = setting()
    call(retrieval, *flags, "--n_docs", 3)
    (tmp_path / "sets").mkdir()
    for number, question in enumerate(QUESTIONS):
        write_jsonl(f"sets/{number}.jsonl", [question])
    call(retrieval, *flags, "--data_path", tmp_path / "sets", "--n_docs", 3)
    single = [read_jsonl(tmp_path / f"out/{number}.jsonl")[0] for number in range(3)]
    for one, together in zip(single, read_jsonl(tmp_path / "out/questions.jsonl"), strict=True):
        assert [ctx["id"] for ctx in one["ctxs"]] == [ctx["id"] for ctx in together["ctxs"]]


def test_an_index_and_bm25_give_the_same_shape(tmp_path, setting, call, read_jsonl):
    flags = setting()
    call(retrieval, *flags, "--n_docs", 3)
    exact = read_jsonl(tmp_path / "out/questions.jsonl")
    for _ in range(2):  # made, then found: its file in the embeddings' folder changes nothing
        call(retrieval, *flags, "--n_docs", 3, "--index_type", "SQfp16", "--output_dir", tmp_path / "index")
    assert [record["ctxs"][0]["text"] for record in read_jsonl(tmp_path / "index/questions.jsonl")] == [
        record["ctxs"][0]["text"] for record in exact
    ]
    pytest.importorskip("bm25s")
    call(retrieval, *flags, "--n_docs", 3, "--retriever", "bm25", "--output_dir", tmp_path / "words")
    words = read_jsonl(tmp_path / "words/questions.jsonl")
    assert [ctx["id"] for ctx in words[0]["ctxs"][:2]] == ["p0", "p6"]  # equal texts in the order of the corpus
    assert [record["ctxs"][0]["id"] for record in words[1:]] == ["p4", "p5"]
    assert all(ctx["score"] > 0 for record in words for ctx in record["ctxs"])


def test_words_of_other_scripts():
    pytest.importorskip("bm25s")
    assert words("The café's 3² x_y") == ["café", "s", "32", "x_y"]
    assert words("Cafe\u0301") == ["café"]
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words("巴黎是 Paris") == ["巴", "黎", "是", "paris"]


@pytest.mark.parametrize("more", [[], ["--index_type", "IVF2,Flat"], ["--retriever", "bm25"]])
def test_the_plan_is_printed_and_nothing_else_done(tmp_path, setting, call, capsys, more):
    flags = setting()
    capsys.readouterr()
    call(retrieval, *flags, "--plan", *more)
    printed = capsys.readouterr().out
    assert printed.startswith("passages     7\n")
    assert "RAM" in printed
    assert "disk" in printed
    assert not (tmp_path / "out").exists()


@each(
    ("more", "message"),
    [
        (["--normalize"], "--normalize True: the passages in .*emb were embedded with False"),
        (["--pooling", "cls"], "--pooling cls: the passages in .*emb were embedded with mean"),
        (["--data_path", "nowhere/*.jsonl"], "--data_path nowhere/.*: no such file"),
        (["--passages_embeddings", "nowhere"], "nowhere: no such folder of passage embeddings"),
        (["--model_name_or_path", "no-such-model"], "no-such-model: neither a model folder"),
        (["--index_path", "nowhere.faiss", "--passages_embeddings", ""], "nowhere.faiss: no such index"),
    ],
)
def test_mistakes_are_named_before_any_search(setting, call, more, message):
    flags = setting()
    with pytest.raises(UserError, match=message):
        call(retrieval, *flags, *more)


def test_ids_that_later_stages_refuse_are_refused_at_once(setting, call, write_jsonl):
    flags = setting()
    twice = write_jsonl("twice.jsonl", [QUESTIONS[0], QUESTIONS[0]])
    with pytest.raises(UserError, match=r"twice\.jsonl:2: field 'id': .* is there twice"):
        call(retrieval, *flags, "--data_path", twice)
    without = write_jsonl("without.jsonl", [{name: value for name, value in QUESTIONS[0].items() if name != "id"}])
    with pytest.raises(UserError, match=r"without\.jsonl:1: field 'id': missing"):
        call(retrieval, *flags, "--data_path", without)


def test_outputs_that_would_collide(tmp_path, setting, call, write_jsonl):
    flags = setting()
    with pytest.raises(UserError, match="would replace its own input"):
        call(retrieval, *flags, "--output_dir", tmp_path)
    (tmp_path / "more").mkdir()
    other = write_jsonl("more/questions.jsonl", QUESTIONS)
    with pytest.raises(UserError, match=r"two files are named questions.jsonl"):
        call(retrieval, *flags, "--data_path", tmp_path / "questions.jsonl", other)


def test_text_options():
    passage = {"title": "The Title", "text": "“A” – B…"}
    assert EncoderOptions("m").passage_text(passage) == "The Title “A” – B…"
    assert EncoderOptions("m", lowercase=True, normalize_text=True).passage_text(passage) == 'the title "a" - b...'
    assert EncoderOptions("m", no_title=True, prefix="passage: ").passage_text(passage) == "passage: “A” – B…"
    assert EncoderOptions("m", lowercase=True, prefix="query: ").question_text("Who?") == "query: who?"
    assert normalize_text("a\u00adb\x01 x \u2033 \u2215 \u301c . . . ") == "ab x '' / ~ ... "


EMPTY = {"id": "empty", "title": "Paris", "text": " "}


@pytest.mark.parametrize("more", [[], ["--index_type", "SQfp16"], ["--retriever", "bm25"]])
def test_empty_passages_are_never_embedded_or_retrieved(tmp_path, setting, call, read_jsonl, monkeypatch, more):
    encoded, encode = [], Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, texts, *a: encoded.extend(texts) or encode(self, texts, *a))
    monkeypatch.setitem(globals(), "PASSAGES", [PASSAGES[0], EMPTY, *PASSAGES[1:]])
    flags = setting()
    assert len(encoded) == 7
    if "bm25" in more:
        pytest.importorskip("bm25s")
    call(retrieval, *flags, "--n_docs", 8, *more)
    found = [{ctx["id"] for ctx in record["ctxs"]} for record in read_jsonl(tmp_path / "out/questions.jsonl")]
    assert all("empty" not in ids for ids in found)
    assert "bm25" in more or [len(ids) for ids in found] == [7, 7, 7]


def test_a_passage_that_is_empty_to_the_encoder_is_named(setting, monkeypatch):
    monkeypatch.setitem(globals(), "PASSAGES", [{"id": "odd", "title": "", "text": "zzz"}])
    tokenize = Encoder.tokenize
    monkeypatch.setattr(
        Encoder,
        "tokenize",
        lambda self, texts: [ids[: len(ids) * ("zzz" not in texts)] for ids in tokenize(self, texts)],
    )
    with pytest.raises(UserError, match="passage 'odd': is empty to the encoder, whose tokenizer makes no token of it"):
        setting()


def test_contents_without_titles(tmp_path, call, tiny_encoder, write_jsonl, read_jsonl):
    lines = ["Paris is a city.\nIt lies on the Seine.", "Berlin is a city.\nIt lies on the Spree."]
    corpus = write_jsonl("corpus.jsonl", [{"id": i, "contents": text} for i, text in enumerate(lines)])
    common = ["--model_name_or_path", tiny_encoder, "--passages", corpus, "--device", "cpu"]
    call(passage_embed, *common, "--output_dir", tmp_path / "emb", "--no_title")
    questions = write_jsonl("questions.jsonl", QUESTIONS[:1])
    flags = [*common, "--data_path", questions, "--n_docs", 2, "--passages_embeddings", tmp_path / "emb"]
    call(retrieval, *flags, "--output_dir", tmp_path / "out")  # as the passages were embedded
    ctxs = read_jsonl(tmp_path / "out/questions.jsonl")[0]["ctxs"]
    assert sorted((ctx["title"], ctx["text"]) for ctx in ctxs) == sorted(("", text) for text in lines)
    assert {ctx["hasanswer"] for ctx in ctxs} == {True, False}


def test_answers_are_looked_for_by_characters_where_asked(
    tmp_path, setting, call, write_jsonl, read_jsonl, monkeypatch
):
    monkeypatch.setitem(globals(), "PASSAGES", [{"id": "1", "title": "", "text": "北京是中国的首都。"}])
    monkeypatch.setitem(globals(), "QUESTIONS", [{"id": "q", "question": "首都?", "answers": ["北京"]}])
    flags = setting()
    call(retrieval, *flags, "--n_docs", 1)
    assert [ctx["hasanswer"] for ctx in read_jsonl(tmp_path / "out/questions.jsonl")[0]["ctxs"]] == [False]
    with pytest.raises(UserError, match="match: None then, 'characters' now"):
        call(retrieval, *flags, "--n_docs", 1, "--match", "characters")
    call(retrieval, *flags, "--n_docs", 1, "--match", "characters", "--overwrite")
    (record,) = read_jsonl(tmp_path / "out/questions.jsonl")
    assert record["answer_match"] == "characters"
    assert record["ctxs"][0]["hasanswer"]


def test_the_published_codes_flags(tmp_path, setting, call, read_jsonl):
    flags = setting()
    call(retrieval, *flags, "--n_docs", 3)
    own = read_jsonl(tmp_path / "out/questions.jsonl")
    questions = flags[flags.index("--data_path") + 1]
    theirs = [*flags[:6], "--device", "cpu", "--dtype", "float32", "--passages_embeddings", tmp_path / "emb/passages_*",
              "--data_path_or_dir", questions, "--output_dir", tmp_path / "theirs", "--save_or_load_index"]  # fmt: skip
    call(retrieval, *theirs, "--n_docs", 3)
    assert read_jsonl(tmp_path / "theirs/questions.jsonl") == own


def published(folder, shards=3):
    """Embeddings of PASSAGES as Contriever's authors publish them."""
    folder.mkdir()
    vectors = np.random.default_rng(0).standard_normal((len(PASSAGES), 32)).astype("float32")
    for number, rows in enumerate(np.array_split(np.arange(len(PASSAGES)), shards)):
        ids = [PASSAGES[row]["id"] for row in rows]
        (folder / f"passages_{number:02d}").write_bytes(pickle.dumps((ids, vectors[rows]), 4))
    return folder


def test_published_embeddings_by_folder_glob_or_names(tmp_path, setting, call, read_jsonl):
    flags, folder = setting(), published(tmp_path / "wikipedia_embeddings")
    found = []
    for number, given in enumerate([[folder], [f"{folder}/*"], sorted(folder.iterdir())]):
        call(retrieval, *flags, "--passages_embeddings", *given, "--output_dir", tmp_path / f"o{number}", "--n_docs", 3)
        found.append(read_jsonl(tmp_path / f"o{number}/questions.jsonl"))
    assert found[0] == found[1] == found[2]
    for pattern, message in (
        (f"{folder}/*1", "leaves out .*passages_00; give the folder"),
        ("no/*", "means 0 folders"),
    ):
        with pytest.raises(UserError, match=message):
            call(retrieval, *flags, "--passages_embeddings", pattern, "--n_docs", 4)


def test_questions_are_encoded_in_float32_unless_asked_otherwise(tmp_path, setting, call):
    flags = setting()
    flags.remove("--dtype")
    flags.remove("float32")
    call(retrieval, *flags, "--n_docs", 3)
    settings = json.loads((tmp_path / "out/questions.jsonl.settings.json").read_text())
    assert settings["flags"]["dtype"] == "float32"
