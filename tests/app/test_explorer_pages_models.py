"""The page Models: what is at hand, one's own by path, and hostile folders in one line each."""

import json
import os
import shutil
from pathlib import Path

import pytest
from explorer_page import texts

from engram_app.local_models import look
from engram_app.opening import open_model
from engram_model.errors import CheckpointError

RAN = "ran"


@pytest.fixture
def own(pair, tmp_path):
    """A checkpoint of one's own, free to be broken."""
    return Path(shutil.copytree(pair / "plain", tmp_path / "own"))


@pytest.fixture
def foreign(tokenizer, tmp_path):
    """A small GPT-2 on disk."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2)
    folder = tmp_path / "foreign"
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def typed(explorer, path, button="Look at it"):
    at = explorer("models")
    at.text_input(key="models_path").set_value(str(path))
    next(one for one in at.button if one.label == button).click().run()
    assert not at.exception
    return at


def test_models_at_hand_are_listed_with_what_is_known(explorer):
    at = explorer("models")
    table = at.dataframe[0].value
    assert list(table["model"])[:2] == ["memory", "plain"]
    assert list(table["memory in layer"])[:2] == ["0, 2", "none"]
    assert "memory is open" in texts(at) and "compared with plain" in texts(at)


def test_pages_that_do_not_apply_say_why(explorer):
    at = explorer("models", models=("plain", "memory"))
    pages = at.dataframe[1].value.set_index("page")
    assert pages.loc["Gates", "why"] == "it has no memory"
    assert pages.loc["Lens", "applies"] == "yes"


def test_ones_own_is_opened_by_path_and_by_link(explorer, own):
    at = typed(explorer, own)
    assert not at.error and at.sidebar.selectbox(key="model").value == str(own)
    assert "own is open" in texts(at)
    at = typed(explorer, own, "Compare with it")
    assert at.sidebar.selectbox(key="twin").value == str(own)
    at = explorer("models", model=str(own))
    assert "own is open" in texts(at)


def test_a_model_of_transformers_is_opened(explorer, foreign):
    at = typed(explorer, foreign)
    assert not at.error and "foreign is open: 2 layers of width 16, no memory" in texts(at)
    model, _ = open_model(str(foreign))
    assert type(model).__name__ == "GPT2LMHeadModel"


@pytest.mark.parametrize(
    "path", ["", "../../etc", "a\0b", "x" * 10_000, "/dev/zero", "/etc/passwd", "/", "~nobody/x"]
)
def test_hostile_paths_are_one_line(explorer, path):
    at = typed(explorer, path)
    assert len(at.error) == 1 and "\n" not in at.error[0].value
    assert len(at.error[0].value) < 700
    assert at.sidebar.selectbox(key="model").value == "memory"


def test_a_loop_of_links_is_one_line(explorer, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert len(typed(explorer, tmp_path / "a").error) == 1


def unsafe(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")


def code(folder):
    (folder / "own.py").write_text(f"open({RAN!r}, 'w')")
    change(folder, model_type="ours", auto_map={"AutoModelForCausalLM": "own.Model"})


def shard(folder):
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def outside(folder):
    shutil.move(folder / "model.safetensors", folder.parent / "model.safetensors")
    index = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


HOSTILE = {
    "pickles": (unsafe, "pickles"),
    "code": (code, "code of its own"),
    "shard": (shard, "missing"),
    "outside": (outside, "outside of its folder"),
    "wide": (lambda f: change(f, hidden_size=10**9), "larger model"),
    "deep": (lambda f: change(f, num_hidden_layers=10**9), "num_hidden_layers"),
    "deeper": (lambda f: change(f, num_hidden_layers=9999), "larger model"),
    "untyped": (lambda f: change(f, model_type=[]), "model_type"),
    "no object": (lambda f: (f / "config.json").write_text("[]"), "no object"),
    "nested": (lambda f: (f / "config.json").write_text("[" * 99_999), "damaged"),
    "large": (lambda f: (f / "config.json").write_text(" " * (2**20 + 1)), "1 MiB"),
    "cut": (lambda f: os.truncate(f / "model.safetensors", 99), "damaged"),
    "tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_are_refused_and_nothing_is_run(name, own, monkeypatch):
    monkeypatch.chdir(own.parent)
    spoil, said = HOSTILE[name]
    spoil(own)
    with pytest.raises(CheckpointError, match=said) as refused:
        look(own)
    assert "\n" not in str(refused.value)
    assert not list(own.parent.rglob(RAN))


def test_an_unknown_architecture_is_one_line_when_it_is_opened(own):
    change(own, model_type="never-heard-of")
    with pytest.raises(CheckpointError, match="cannot be opened") as refused:
        open_model(str(own))
    assert "\n" not in str(refused.value)
