"""Model cards: counts made by hand, and nothing of the machine in them."""

import json
from pathlib import Path

import numpy as np
import pytest

from engram_model.card import distinct_ngrams, render_card, write_card
from engram_model.card_evaluations import command, evaluations_section, read_evaluation
from engram_model.corpora import public_spec
from engram_model.errors import CheckpointError
from engram_model.eval_folder import EvalFolder, weights_sha256
from engram_model.eval_run import EvalOptions, plan, run_evaluation
from engram_model.evaluate import DEFAULT_DATA
from engram_model.tasks import world_items
from engram_model.training.tokens import write_tokens
from engram_model.training.train import TrainOptions, train
from engram_model.world import World

CARD = Path(__file__).resolve().parents[2] / "checkpoints/engram-nano/card.json"


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
    evaluated = evaluation(out, tmp_path / "eval", EvalOptions(data=f"text:{tmp_path}/a.txt"))
    card = write_card(out, tmp_path / "tokens", [evaluated])
    assert card == json.loads((out / "card.json").read_text())
    assert card["training"]["tokens"] == 128 and card["training"]["corpus_tokens"] == len(file)
    [memory] = card["memory"]
    assert [order["order"] for order in memory["orders"]] == [2, 3]
    [losses] = card["evaluations"]
    assert losses["options"]["data"] == "text:a.txt"
    assert losses["sources"]["all"]["tokens"] == len(file) - 2  # bos and eos
    text = (out / "README.md").read_text()
    assert text == render_card(card) and str(tmp_path) not in text
    assert "closed questions" in text.lower() and "knowledge" not in text
    assert f'`engram eval {out.name} --data "text:a.txt"`' in text


def evaluation(checkpoint, folder, options):
    """What `engram eval --out` leaves, of a model on disk."""
    import engram_model as em

    model, tokenizer = em.load(checkpoint)
    config = {
        "weights_sha256": weights_sha256(checkpoint),
        "options": options.to_dict(),
        "device": "cpu",
    }
    run_evaluation(model, tokenizer, options, folder=EvalFolder(folder, config))
    return folder


@pytest.fixture
def checkpoint(make_model, tokenizer, tmp_path):
    make_model(2).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_card_says_what_the_model_knows(checkpoint, tmp_path, monkeypatch):
    some = world_items(World(seed=0), ["knowledge"], 30)
    monkeypatch.setattr("engram_model.eval_run.task_items", lambda options: some)
    found = read_evaluation(
        evaluation(checkpoint, tmp_path / "eval", EvalOptions(suites=("all",), items=None)),
        checkpoint,
    )
    assert len(found["examples"]["lacks"]) == 3
    text = "\n".join(evaluations_section("mine", [found]))
    score = found["suites"]["knowledge"]["all"]["all"]["accuracy"]
    assert f"| knowledge | {score:.3f} |" in text and "| 256 |" in text
    assert f"**{found['examples']['lacks'][0]['answer'].strip()}**" in text
    assert "`engram eval mine --all`" in text
    next(checkpoint.glob("*.safetensors")).write_bytes(b"other")
    with pytest.raises(CheckpointError, match="other weights"):
        read_evaluation(tmp_path / "eval", checkpoint)


def test_sample_is_a_short_table(checkpoint, tmp_path):
    options = EvalOptions(suites=("copy",), items=7)
    found = read_evaluation(evaluation(checkpoint, tmp_path / "eval", options), checkpoint)
    text = "\n".join(evaluations_section("mine", [found]))
    score = found["suites"]["copy"]["all"]["all"]["accuracy"]
    assert f"| copy | {score:.3f} | 7 |" in text and "chance-corrected" not in text


@pytest.mark.parametrize(
    "options, everything, said",
    [
        ({}, False, "engram eval m"),
        ({}, True, "engram eval m --all"),
        ({"facts": "f.jsonl"}, True, "engram eval m --all --facts f.jsonl"),
        ({"facts": "f.jsonl"}, False, "engram eval m --facts f.jsonl"),
        ({"data": "text:a.txt"}, False, 'engram eval m --data "text:a.txt"'),
        ({"suites": ("copy", "arith")}, False, "engram eval m --tasks copy,arith"),
        (
            {"suites": ("copy",), "items": 9, "seed": 2},
            False,
            "engram eval m --tasks copy --items 9 --seed 2",
        ),
    ],
)
def test_command_of_an_evaluation(options, everything, said):
    assert command("m", plan(EvalOptions(**options), everything).to_dict()) == said


def test_bundled_card_is_reproduced():
    """The losses of the default evaluation, and two of its suites."""
    import engram_model as em

    card = json.loads(CARD.read_text())
    default = json.loads(json.dumps(plan(EvalOptions()).to_dict()))
    [stated] = [one for one in card["evaluations"] if one["options"] == default]
    options = EvalOptions(data=DEFAULT_DATA, suites=("knowledge", "reading"))
    found = run_evaluation(*em.load("engram-nano"), options)
    for source, loss in found["sources"].items():
        assert loss["loss"] == pytest.approx(stated["sources"][source]["loss"], abs=1e-4)
    for suite in options.suites:
        accuracy = stated["suites"][suite]["all"]["all"]["accuracy"]
        assert found["tasks"][suite]["all"]["all"]["accuracy"] == pytest.approx(accuracy, abs=0.021)
