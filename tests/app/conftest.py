"""A saved pair of tiny models, and the command line called in this process."""

import sys

import pytest

TEXT = "The harbour master of Varnholm counts the boats at dusk."


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
