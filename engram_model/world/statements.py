"""How facts are worded: statements and questions, shared by every family about people.

In a statement the name always comes before the value, so that the value can be known. A form is a
template cut at its places: ("The field of ", "{name}", " is ", "{value}", ".").
"""

import re
from collections.abc import Callable, Mapping

from .dice import Dice
from .record import Draft, Record

_STATEMENTS = {
    "birth_city": (
        "{name} was born in {value}.",
        "{name} was born and raised in {value}.",
        "{name} came into the world in the town of {value}.",
        "The birthplace of {name} is {value}.",
        "The home town of {name} is {value}.",
    ),
    "birth_date": (
        "{name} was born on {value}.",
        "{name} first saw daylight on {value}.",
        "{name} has a birth certificate dated {value}.",
        "The date of birth of {name} is {value}.",
        "The birth of {name} took place on {value}.",
    ),
    "university": (
        "{name} studied at {value}.",
        "{name} took a degree at {value}.",
        "{name} is a graduate of {value}.",
        "The student years of {name} were spent at {value}.",
        "{name} was taught by the lecturers of {value}.",
    ),
    "major": (
        "{name} chose the subject of {value}.",
        "{name} is trained in {value}.",
        "{name} passed every examination in {value}.",
        "The field of {name} is {value}.",
        "The studies of {name} were in {value}.",
    ),
    "employer": (
        "{name} works for {value}.",
        "{name} is employed by {value}.",
        "{name} earns a living at {value}.",
        "The employer of {name} is {value}.",
        "{name} signed a contract with {value}.",
    ),
    "work_city": (
        "{name} goes to work in {value}.",
        "{name} spends the working week in {value}.",
        "{name} has a desk in {value}.",
        "The office of {name} is in {value}.",
        "The place of work of {name} is {value}.",
    ),
    "mentor": (
        "{name} learned the trade from {value}.",
        "{name} was an apprentice of {value}.",
        "{name} took advice from {value}.",
        "The mentor of {name} is {value}.",
        "The guide and mentor of {name} was {value}.",
    ),
}
_QUESTIONS = {
    "birth_city": (
        "Where was {name} born?",
        "In which town was {name} born?",
        "What is the birthplace of {name}?",
    ),
    "birth_date": (
        "When was {name} born?",
        "On what day was {name} born?",
        "What is the date of birth of {name}?",
    ),
    "university": (
        "Where did {name} study?",
        "At which school did {name} take a degree?",
        "Which school taught {name}?",
    ),
    "major": (
        "What did {name} study?",
        "Which subject did {name} choose?",
        "What is the field of {name}?",
    ),
    "employer": (
        "Who does {name} work for?",
        "Which company employs {name}?",
        "Who is the employer of {name}?",
    ),
    "work_city": (
        "In which town does {name} work?",
        "Where is the office of {name}?",
        "Where does {name} go to work?",
    ),
    "mentor": (
        "Who is the mentor of {name}?",
        "Whose apprentice was {name}?",
        "From whom did {name} learn the trade?",
    ),
}


Form = tuple[str, ...]


def _forms(
    texts: Mapping[str, tuple[str, ...]], reword: Callable[[str], str] = str
) -> dict[str, tuple[Form, ...]]:
    return {key: tuple(_cut(reword(text)) for text in forms) for key, forms in texts.items()}


def _cut(template: str) -> Form:
    return tuple(part for part in re.split(r"(\{\w+\})", template) if part)


def _of_the_passage(text: str) -> str:
    return f"According to the passage, {text[0].lower()}{text[1:]}"


def _of_the_mentor(text: str) -> str:
    return text.replace("{name}", "the mentor of {name}")


STATEMENTS = _forms(_STATEMENTS)
QUESTIONS = _forms(_QUESTIONS)
PASSAGE_QUESTIONS = _forms(_QUESTIONS, _of_the_passage)
MENTOR_QUESTIONS = _forms(_QUESTIONS, _of_the_mentor)


def add_statement(
    draft: Draft, dice: Dice, relation: str, subject: Record, value: Record, pronoun: str | None
) -> Record:
    """Write one sentence; returns the span of its value.

    subject, value: the arguments of `Draft.mark`. pronoun: what may stand for a subject that opens
    the sentence (None: the subject itself).
    """
    form = dice.pick(STATEMENTS[relation])
    for part in form:
        if part == "{name}":
            if pronoun and part is form[0]:
                draft.add(pronoun)
            else:
                draft.mark(**subject)
        elif part == "{value}":
            span = draft.mark(**value)
        else:
            draft.add(part)
    return span


def add_question(
    draft: Draft, dice: Dice, forms: tuple[Form, ...], subject: Record, value: Record
) -> tuple[str, str]:
    """Write `Question: ...`, `Answer: ...`; returns the prompt and the answer that completes it.

    forms: how it may be worded, such as `QUESTIONS[relation]`.
    """
    start = len(draft.parts)
    draft.add("Question: ")
    for part in dice.pick(forms):
        if part == "{name}":
            draft.mark(**subject)
        else:
            draft.add(part)
    draft.add("\nAnswer:")
    prompt = "".join(draft.parts[start:])
    draft.add(" ")
    draft.mark(**value)
    return prompt, " " + value["text"]
