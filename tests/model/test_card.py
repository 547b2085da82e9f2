"""Model cards: counts made by hand, and nothing of the machine in them."""

import json

import numpy as np
import pytest

from engram_model.card import distinct_ngrams, public_spec, render_card, write_card
from engram_model.card_tasks import read_tasks, tasks_section
from engram_model.errors import CheckpointError
from engram_model.eval_folder import EvalFolder, weights_sha256
from engram_model.eval_run import EvalOptions, run_evaluation
from engram_model.training.tokens import write_tokens
from engram_model.training.train import TrainOptions, train


@pytest.mark.parametrize("order", [2, 3])
def test_distinct_ngrams_equal_a_plain_set(order):
    ids = np.random.default_rng(0).integers(0, 6, 500)
    plain = {tuple(ids[i : i + order]) for i in range(len(ids) - order + 1)}
    assert distinct_ngrams(ids, order) == len(plain)


def test_specs_lose_their_folders():
    spec = "json:/home/someone/data/train-*.jsonl.xz#text + world:?seed=0&tokens=7M"
    assert public_spec(spec) == "json:train-*.jsonl.xz#text + world:?seed=0&tokens=7M"


def test_card_of_a_small_run(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "bpe")
    (tmp_path / "a.txt").write_text("The harbour master counts the boats at dusk. " * 60)
    file = write_tokens(f"text:{tmp_path}/a.txt", tokenizer, tmp_path / "tokens")
    options = TrainOptions(
        tokens=4 * 32, context=32, batch=2, log_every=1, tokenizer=str(tmp_path / "bpe")
    )
    out = train("engram-tiny", f"tokens:{tmp_path}/tokens", tmp_path / "run", options)
    card = write_card(out, tmp_path / "tokens", (f"text:{tmp_path}/a.txt",))
    assert card == json.loads((out / "card.json").read_text())
    assert card["training"]["tokens"] == 128 and card["training"]["corpus_tokens"] == len(file)
    [memory] = card["memory"]
    assert [order["order"] for order in memory["orders"]] == [2, 3]
    assert card["evaluation"]["text:a.txt"]["all"]["tokens"] == len(file) - 2  # bos and eos
    text = (out / "README.md").read_text()
    assert text == render_card(card) and str(tmp_path) not in text
    assert "tasks" not in card and "What it knows" not in text


def test_card_says_what_the_model_knows(make_model, tokenizer, tmp_path):
    model = make_model(2)
    model.save_pretrained(tmp_path / "model")
    options = EvalOptions(suites=("knowledge",), items=30)
    config = {"weights_sha256": weights_sha256(tmp_path / "model"), "options": options.to_dict()}
    folder = EvalFolder(tmp_path / "eval", config)
    metrics = run_evaluation(model, tokenizer, options, folder=folder)
    tasks = read_tasks(tmp_path / "eval", tmp_path / "model")
    assert len(tasks["examples"]["lacks"]) == 3
    text = "\n".join(tasks_section(tasks))
    score = metrics["tasks"]["knowledge"]["all"]["all"]["accuracy"]
    assert f"| knowledge | {score:.3f} |" in text and "| 256 |" in text
    assert f"**{tasks['examples']['lacks'][0]['answer'].strip()}**" in text
    next((tmp_path / "model").glob("*.safetensors")).write_bytes(b"other")
    with pytest.raises(CheckpointError, match="other weights"):
        read_tasks(tmp_path / "eval", tmp_path / "model")
