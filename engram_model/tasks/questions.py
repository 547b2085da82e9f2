"""Items from records of one's own: prompt, answer and options."""

import json
from typing import Any

from engram_model.errors import CorpusError
from engram_model.textfiles import read_lines

from .items import Item

FIELDS = ("prompt", "answer", "options", "id", "suite", "entity", "text")
NEEDED = "prompt, answer and two or more options, the answer among them"


def question_item(record: Any, where: str) -> Item:
    """The item of a dict with `prompt`, `answer`, `options`; `id`, `suite`, `entity` if known.

    Other fields that hold a text or a number become its labels. Without `entity` or `subject` every
    item is its own in intervals; without `suite` it is of the suite `items`.

    Args:
        where: the place of the record, for errors and as its `id` if it has none.

    Raises:
        CorpusError: something else.
    """
    found = record if isinstance(record, dict) else {}
    options = found.get("options")
    options = options if isinstance(options, list | tuple) else []
    texts = [found.get("prompt"), found.get("answer"), *options]
    usable = all(isinstance(text, str) and text for text in texts) and texts[1] in options
    if not usable or len(set(options)) < 2 or len(set(options)) < len(options):
        raise CorpusError(f"{where} is no question: it needs {NEEDED}, each once")
    name = str(found.get("id") or where)
    return Item(
        id=name,
        suite=str(found.get("suite") or "items"),
        prompt=found["prompt"],
        answer=found["answer"],
        options=tuple(options),
        entity=str(found.get("entity") or found.get("subject") or name),
        labels={
            label: value
            for label, value in found.items()
            if label not in FIELDS and isinstance(value, str | int)
        },
    )


def question_items(path: str) -> list[Item]:
    """The items of a file of JSON lines, as `question_item`.

    Raises:
        CorpusError: the file cannot be read, is empty, or a line is no question.
    """
    items = [
        question_item(_record(line, f"{path}: line {number}"), f"{path}: line {number}")
        for number, line in read_lines(path)
        if line.strip()
    ]
    if not items:
        raise CorpusError(f"{path} is empty: there is no question to ask")
    return items


def _record(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise CorpusError(f"{where}: not JSON; write one object a line") from None
