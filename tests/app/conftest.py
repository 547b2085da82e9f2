"""A saved pair of tiny models, the command line called in this process, and a browser.

Screenshots go to the folder ENGRAM_SCREENSHOTS, else to pytest's temporary one.
"""

import os
import sys
from pathlib import Path

import pytest
from browsing import ARGUMENTS, chromium_path, complaint, serving, settled
from explorer_page import TEXT as SENTENCE

TEXT = "The harbour master of Varnholm counts the boats at dusk."


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """What the explorer keeps on disk, away from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def pair(make_model, tokenizer, tmp_path_factory):
    """Folder with the checkpoints `memory` and `plain`: one tokenizer, other weights."""
    folder = tmp_path_factory.mktemp("pair")
    sizes = dict(max_position_embeddings=192)
    models = {
        "memory": make_model(streams=4, memory_layers=(0, 2), **sizes),
        "plain": make_model(streams=2, memory_layers=(), seed=3, **sizes),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def corpus(tmp_path):
    """A text corpus of 24 short documents."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(24):
        boats = f"{TEXT} In {1900 + i} there were {i * 37 % 101} boats. " + "At dusk. " * (i % 3)
        (folder / f"{i:02}.txt").write_text(boats)
    return f"text:{folder}/*.txt"


@pytest.fixture
def engram(monkeypatch, capsys, pair):
    """Function: words of a command -> exit code, stdout, stderr. The pair counts as bundled."""
    from engram_app.cli import main

    monkeypatch.setenv("ENGRAM_CHECKPOINTS", str(pair))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["engram", *map(str, words)])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return exited.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def explorer(pair, monkeypatch):
    """Function: page, what the URL says -> the page of the explorer, run without a browser."""
    from streamlit.testing.v1 import AppTest

    import engram_app
    from engram_app.explorer.opened import OPENED, Opened

    def visit(page="overview", models=("memory", "plain"), results=(), **url):
        opened = Opened([str(pair / name) for name in models], [str(path) for path in results])
        monkeypatch.setenv(OPENED, opened.to_json())
        app = Path(engram_app.__file__).parent / "explorer" / "app.py"
        at = AppTest.from_file(str(app), default_timeout=60)
        at.query_params.update({"text": SENTENCE, **url})
        at.run()
        if page != "overview":
            at.switch_page(f"app_pages/{page}.py").run()
        assert not at.exception
        return at

    return visit


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium_path(), args=ARGUMENTS)
        except Error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip("no Chromium: install the system's, or run `playwright install chromium`")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    folder = os.environ.get("ENGRAM_SCREENSHOTS")
    folder = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def serving_bundled(tmp_path_factory):
    """A running `engram explore` with the bundled models. Afterwards: its log is clean."""
    with serving(tmp_path_factory.mktemp("server") / "log") as running:
        yield running
    said = running.log.read_text()
    assert "Traceback" not in said and "deprecat" not in said, said


@pytest.fixture(scope="session")
def server(serving_bundled):
    """Its address."""
    return serving_bundled.address


@pytest.fixture
def visit(chromium, server):
    """Function: path -> a page in a fresh session. Afterwards: no error, no foreign address."""
    hosts, errors, contexts = set(), [], []

    def open_page(path="/", theme="light", height=900):
        context = chromium.new_context(
            viewport={"width": 1280, "height": height}, color_scheme=theme
        )
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.on("console", lambda message: errors.append(complaint(message)))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"dialog {dialog.message}"))
        page.goto(server + path)
        settled(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not any(errors), [error for error in errors if error]
    assert hosts <= {server.removeprefix("http://")}
