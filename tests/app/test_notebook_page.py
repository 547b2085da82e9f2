"""docs/notebook.md is true: its blocks run in order, and print what stands below them.

`python tests/app/test_notebook_page.py` writes anew what they print.
"""

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "notebook.md"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<said>.*?)```\n)?", re.S)
NUMBER = re.compile(r"(?<![\w.])[-+]?[\d,]*\d(?:\.\d*)?%?(?!\w)")


def runs(page: str) -> Iterator[tuple[re.Match, str]]:
    """Each block, and what it printed; one namespace for all."""
    names: dict = {}
    for block in BLOCK.finditer(page):
        line = page.count("\n", 0, block.start("code"))
        code = compile("\n" * line + block["code"], str(PAGE), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code, names)
        yield block, said.getvalue()


def alike(stated: str, said: str) -> bool:
    """The same words and whole numbers; decimals and percentages may differ in their last digit.

    Another processor adds up in another order; line ends and columns move with the digits.
    """
    words = [NUMBER.sub("#", text).split() for text in (stated, said)]
    numbers = [NUMBER.findall(text) for text in (stated, said)]
    return words[0] == words[1] and all(map(_close, *numbers))


def _close(stated: str, said: str) -> bool:
    first, second = (float(number.replace(",", "").rstrip("%")) for number in (stated, said))
    _, point, decimals = stated.rstrip("%").partition(".")
    unit = 10.0 ** -len(decimals) if point or "%" in stated else 0.0
    return abs(first - second) <= 1.01 * unit and ("%" in stated) == ("%" in said)


def filled(page: str) -> str:
    """The page with what its blocks print below them."""
    done, parts = 0, []
    for block, said in runs(page):
        parts.append(page[done : block.start()] + f"```python\n{block['code']}```\n")
        lines = "\n".join(line.rstrip() for line in said.splitlines())
        parts.append(f"\n```text\n{lines}\n```\n" if said else "")
        done = block.end()
    return "".join(parts) + page[done:]


def test_blocks_print_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = [
        f"{block['code']}\nsays\n{said}\nthe page has\n{block['said']}"
        for block, said in runs(PAGE.read_text())
        if not alike(block["said"] or "", said)
    ]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize(
    ("stated", "said", "same"),
    [
        ("gate 0.61", "gate  0.62\n", True),
        ("gate 0.61", "gate 0.63", False),
        ("keeps 80% (76% to 84%)", "keeps 80% (77% to 84%)", True),
        ("keeps 80%", "keeps 82%", False),
        ("layer 3", "layer 4", False),
        ("1,024 tokens", "1,025 tokens", False),
        ("earlier", "later", False),
    ],
)
def test_what_counts_as_the_same(stated, said, same):
    assert alike(stated, said) is same


@pytest.mark.parametrize("package", ["engram_model", "engram_probes"])
def test_every_public_name_has_its_place(package):
    module, page = __import__(package), PAGE.read_text()
    assert [name for name in module.__all__ if not re.search(rf"\b{name}\b", page)] == []


def test_every_probe_runs():
    """Functions and modules are called in a block; to be named in a sentence is not enough."""
    import engram_probes as ep

    code = "".join(block["code"] for block in BLOCK.finditer(PAGE.read_text()))
    functions = [name for name in ep.__all__ if name[0].islower()]
    assert [name for name in functions if not re.search(rf"\bep\.{name}\b", code)] == []


if __name__ == "__main__":
    text = PAGE.read_text()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        PAGE.write_text(filled(text))
