"""Every text shown to an LLM, and the table of tasks. A YAML file (--prompts) can replace any of them; the shipped
one (--prompts reference) has the structure of the published code.

The YAML's keys are those of `Prompts` below, all optional; `tasks` maps a task's name to `instruction`, `label` and
`metric`. Placeholders: {instruction} {label} {question} {evidence} in the first two texts, {question} in `background`,
{number} {title} {text} in `passage` and `several_passages`.
"""

import dataclasses
import hashlib
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gainRAG.common.cli import UserError, input_file
from gainRAG.common.jsonl import Record


@dataclass(frozen=True)
class Task:
    """How a task's questions are put.

    Attributes:
        instruction: what the answer is to look like.
        label: what comes before the question's text.
        metric: `answers` (containment, EM, F1) or `accuracy` (option letter, true or false).
    """

    instruction: str
    label: str = "Question"
    metric: str = "answers"


SHORT_ANSWER = Task("Answer the question. Reply with the answer only, in a few words.")

TASKS = {
    "HotpotQA": SHORT_ANSWER,
    "2WikiMultiHopQA": SHORT_ANSWER,
    "WebQuestions": SHORT_ANSWER,
    "NaturalQA": SHORT_ANSWER,
    "TriviaQA": SHORT_ANSWER,
    "SQuAD": SHORT_ANSWER,
    "ARC_Challenge": Task("Choose the right option. Reply with its letter only.", metric="accuracy"),
    "PubHealth": Task("Decide whether the claim is true. Reply with true or false only.", "Claim", "accuracy"),
}


@dataclass(frozen=True)
class Prompts:
    """The texts, before the chat template. Training signal, filter and evaluation all read these same ones.

    Attributes:
        base_model_cue: ends the prompt of a base model; the answer follows it after a space.
        system: the system turn, where the chat template takes one; empty: none.
    """

    with_passages: str = "{instruction} Use the passage below.\n\nPassage: {evidence}\n\n{label}: {question}"
    without_passage: str = "{instruction}\n\n{label}: {question}"
    background: str = (
        "Write a background passage of about 100 words with the facts needed to answer the question below. "
        "Write the passage only. If you know nothing about it, write N/A.\n\nQuestion: {question}"
    )
    passage: str = "{title}\n{text}"
    several_passages: str = "[{number}] {title}\n{text}"
    base_model_cue: str = "\nAnswer:"
    system: str = ""
    tasks: dict[str, Task] = field(default_factory=lambda: dict(TASKS))

    def task(self, name: str) -> Task:
        """The named task.

        Raises:
            UserError: there is none; lists the known ones.
        """
        if name not in self.tasks:
            raise UserError(f"--task {name}: unknown; wanted one of {', '.join(self.tasks)}, or one of --prompts")
        return self.tasks[name]

    def evidence(self, passages: Sequence[Record]) -> str:
        """The text of one passage, or of several in their order, as a prompt shows them."""
        layout = self.passage if len(passages) == 1 else self.several_passages
        spelled = [
            layout.format(number=number, title=passage.get("title") or "", text=passage["text"]).strip()
            for number, passage in enumerate(passages, 1)
        ]
        return "\n\n".join(spelled)

    def hash(self) -> str:
        """Identifies the wording in settings and results."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:12]


PLACEHOLDERS = {
    "with_passages": {"instruction", "label", "question", "evidence"},
    "without_passage": {"instruction", "label", "question"},
    "background": {"question"},
    "passage": {"number", "title", "text"},
    "several_passages": {"number", "title", "text"},
    "base_model_cue": set(),
    "system": set(),
}
REQUIRED = {
    "with_passages": {"question", "evidence"},
    "without_passage": {"question"},
    "background": {"question"},
    "passage": {"text"},
    "several_passages": {"text"},
}


SHIPPED = {"reference": Path(__file__).with_name("reference.yaml")}


def load_prompts(path: str | Path | None = None) -> Prompts:
    """The built-in wording, with what the YAML file replaces.

    Args:
        path: a YAML file, or the name of a shipped one.

    Raises:
        UserError: the file is not YAML, or holds an unknown key or a wrong placeholder.
    """
    if path is None:
        return Prompts()
    import yaml

    path = input_file(SHIPPED.get(str(path), path))
    try:
        given = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as problem:
        # PyYAML does not catch what int(), float(), datetime() and the like raise for a value that does not fit its tag
        raise UserError(f"{path}: is not YAML ({' '.join(str(problem).split()):.200})") from None
    if not isinstance(given, dict):
        raise UserError(f"{path}: wanted a mapping with keys among {', '.join([*PLACEHOLDERS, 'tasks'])}")
    tasks = given.pop("tasks", {})
    for key, text in given.items():
        _check_text(path, key, text)
    return Prompts(**given, tasks={**TASKS, **_tasks(path, tasks)})


def _check_text(path: Path, key: str, text: object) -> None:
    if key not in PLACEHOLDERS:
        raise UserError(f"{path}: unknown key '{key}', wanted one of {', '.join([*PLACEHOLDERS, 'tasks'])}")
    try:
        if not _is_text(text):
            raise TypeError
        parts = list(string.Formatter().parse(text))
        if any(form or conversion for _, _, form, conversion in parts):
            raise ValueError
        found = {name for _, name, _, _ in parts if name is not None}
        if found <= PLACEHOLDERS[key]:
            text.format(**{**dict.fromkeys(found, ""), "number": 1})
    except (TypeError, ValueError, LookupError, AttributeError):
        raise UserError(f"{path}: '{key}' is no text with {{placeholders}}; write a literal brace twice") from None
    if key == "base_model_cue" and text.rstrip(" ").endswith("\n"):
        raise UserError(f"{path}: 'base_model_cue' ends in a line break; the answer follows it after a space")
    if found - PLACEHOLDERS[key] or REQUIRED.get(key, set()) - found:
        allowed = ", ".join(f"{{{name}}}" for name in sorted(PLACEHOLDERS[key])) or "none"
        needed = ", ".join(f"{{{name}}}" for name in sorted(REQUIRED.get(key, set()))) or "none"
        raise UserError(f"{path}: '{key}' has placeholders {sorted(found)}; allowed: {allowed}; needed: {needed}")


def _tasks(path: Path, given: object) -> dict[str, Task]:
    try:
        tasks = {name: Task(**entry) for name, entry in given.items()}
    except (AttributeError, TypeError):
        raise UserError(f"{path}: 'tasks' maps a name to instruction, label and metric") from None
    for name, task in tasks.items():
        if not all(map(_is_text, (name, task.instruction, task.label))):
            raise UserError(f"{path}: 'tasks' maps a name to instruction, label and metric, all text")
        if task.metric not in ("answers", "accuracy"):
            raise UserError(f"{path}: tasks.{name}.metric is {task.metric!r}, wanted answers or accuracy")
    return tasks


def _is_text(value: object) -> bool:
    try:
        str.encode(value)
    except (TypeError, UnicodeEncodeError):
        return False
    return True


def question_text(record: Record) -> str:
    """The question as shown: with its options, a line each, where the record has `choices` (`label`, `text`)."""
    choices = record.get("choices")
    if not choices:
        return record["question"]
    options = [f"{label}: {text}" for label, text in zip(choices["label"], choices["text"], strict=True)]
    return "\n".join([record["question"], *options])
