"""What stands under Reproduce on each page runs as it stands, and says the same as the page."""

import shlex

import pytest
from explorer_page import texts

import engram_probes as ep

PAGES = ["overview", "gates", "slots", "lens", "attribution", "heads", "interventions", "compare"]


def code(at, language):
    [found] = [block.value for block in at.code if block.language == language]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_python(explorer, page):
    at = explorer(page)
    names = {}
    exec(code(at, "python"), names)
    assert names["result"].summary() in texts(at)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "compare"])
def test_command(explorer, engram, page, tmp_path, monkeypatch):
    at = explorer(page)
    assert ran(engram, at, tmp_path, monkeypatch) in texts(at)


def ran(engram, at, folder, monkeypatch):
    """Finding of the result that the page's command writes."""
    monkeypatch.chdir(folder)
    words = shlex.split(code(at, "bash"))
    status, _, said = engram(*words[1:])
    assert words[0] == "engram" and status == 0, said
    return ep.load_result(words[words.index("--out") + 1]).summary()


def test_an_alignment(explorer, engram, tmp_path, monkeypatch):
    monkeypatch.setattr("engram_app.explorer.alignments.DOCUMENTS", 24)
    at = explorer("alignment")
    next(b for b in at.button if b.label == "Compute it").click().run()
    names = {}
    exec(code(at, "python"), names)
    assert names["result"].summary() in texts(at)
    assert ran(engram, at, tmp_path, monkeypatch) in texts(at)
