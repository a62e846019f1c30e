"""Runs that nobody made: folders as the stages leave them, from what each method is to have said."""

from pathlib import Path

from gainRAG.common.jsonl import read_records, write_json, write_records
from gainRAG.evaluation.answers import score_prediction
from gainRAG.evaluation.results import summarize

GOLD = "Paris"


def predictions(said: list[str]) -> list[dict]:
    return [
        {
            "id": f"q{number}",
            "question": f"What is capital number {number}?",
            "answers": [GOLD],
            "prompt": "p",
            "prediction": text,
            **score_prediction(text, [GOLD]),
        }
        for number, text in enumerate(said)
    ]


def passages(texts: list[str], **extra) -> list[dict]:
    return [
        {
            "id": f"q{number}",
            "question": f"What is capital number {number}?",
            "answers": [GOLD],
            "ctxs": [{"id": f"p{number}", "title": "City", "text": text, **extra}],
        }
        for number, text in enumerate(texts)
    ]


def answer(work: Path, name: str, said: dict[str, list[str]], folder: str = "answers", k: int = 1, **facts) -> Path:
    """Makes WORK/answers/NAME as run_baselines leaves it, from what each method said."""
    place, results = work / folder / name, {}
    facts = {"model": "tiny", "prompts_hash": "abc", "seed": 42, "split": name, **facts}
    for method, texts in said.items():
        records = predictions(texts)
        write_records(place / f"{method}.jsonl", records)
        gain = {"mean": -1.0, "low": -1.5, "high": -0.5}
        hit = {"mean": 0.5, "low": 0.25, "high": 0.75}
        picks = (
            {}
            if method == "no_retrieval"
            else {"hit_at_1": hit, "hit_at_k": hit, "pseudo_share": hit, "pick_gain": gain}
        )
        results[method] = {**summarize(records, **facts, K_docs=k), "picks": picks}
    write_json(place / "results.json", results)
    return work / folder


def whole_run(work: Path, name: str = "A_test", count: int = 30, text: str = "") -> Path:
    """A run of `count` questions with all that a report can show; `text` is in every text of it.

    Each question has three retrieved passages and a pseudo-passage. GainRAG is right where standard RAG is wrong on
    every third, wrong where it is right on every fifth of the others, and picks the pseudo-passage on every fourth.
    """
    numbers = range(count)
    right = {
        "standard_rag": [n % 3 != 0 for n in numbers],
        "gainrag": [n % 3 == 0 or n % 5 != 0 for n in numbers],
        "no_retrieval": [False for _ in numbers],
    }
    answer(
        work,
        name,
        {method: [f"{GOLD if r else 'Rome'} {text}" for r in is_right] for method, is_right in right.items()},
    )
    held = text or "here"  # in every passage
    gold = [GOLD, held]
    for method in right:
        path = work / "answers" / name / f"{method}.jsonl"
        records = [{**one, "question": f"{one['question']} {text}", "answers": gold} for one in read_records(path)]
        write_records(path, records)
    asked = [{"id": f"q{n}", "question": f"What is capital number {n}? {text}", "answers": gold} for n in numbers]
    found = [
        [{"id": f"{n}-{r}", "title": f"T{r} {text}", "text": f"x{n} {r} {held}"} for r in range(3)] for n in numbers
    ]
    own = [{"id": f"own-{n}", "title": "", "text": f"I think {n} {held}", "is_pseudo": True} for n in numbers]
    everything = [[*passages, pseudo] for passages, pseudo in zip(found, own, strict=True)]
    picked = [everything[n][3 if n % 4 == 0 else n % 3] for n in numbers]
    gains = [[{**one, "PPL_CD": 2.0**r, "retrieved_ppl": 1.0} for r, one in enumerate(all_)] for all_ in everything]
    scores = [
        [{**one, "selector_score": 1.0 - r * (1 + n % 2)} for r, one in enumerate(all_)]
        for n, all_ in enumerate(everything)
    ]
    for where, field, lists in (
        ("retrieved", "ctxs", found),
        ("selected/gainrag", "ctxs", [[{**one, "selector_score": 1.0}] for one in picked]),
        ("gains", "passages", gains),
        ("scored/start", "ctxs", [scored[::-1] for scored in scores]),
        ("scored/trained", "ctxs", scores),
    ):
        write_records(
            work / where / f"{name}.jsonl", ({**one, field: list_} for one, list_ in zip(asked, lists, strict=True))
        )
    steps = [{"step": n, "loss": 1 / n, "learning_rate": 1e-5 * n} for n in range(1, 500)]
    write_json(work / "selector/trainer_state.json", {"log_history": [*steps, {"step": 499, "train_loss": 0.5}]})
    write_json(work / "selector/training.settings.json", {"flags": {"learning_rate": 3e-5, "num_train_epochs": 2.0}})
    share = {"mean": 50.0, "low": 40.0, "high": 60.0}
    row = {"dataset": name, "method": "standard_rag", "label": "Standard RAG"}
    gap = {"n": count, "held": 3, "right": 3, "wrong_of_held": share, "not_held_of_right": share}
    write_json(work / "figure_gap.json", {"rows": [{**row, "gap": gap}, {**row, "method": "gainrag", "gap": None}]})
    return work
