"""What is kept: shares, their intervals, and when there is none; the figure that shows it."""

import numpy as np
import pytest

import engram_probes as ep
from engram_model.errors import UsageError
from engram_model.intervals import mean_interval
from engram_model.tasks import Item
from engram_probes.bootstrap import draw_counts
from engram_probes.suppression_statistics import measure


def item(index, suite="a", entity=None, options=4):
    texts = tuple(f" {i}" for i in range(options))
    return Item(f"{suite}{index}", suite, "?", " 0", texts, entity or f"e{index}")


@pytest.fixture
def asked():
    """40 items of 10 entities with two or four options, credits before, after and in a control."""
    dice = np.random.default_rng(1)
    items = [item(i, entity=f"e{i % 10}", options=4 if i % 2 else 2) for i in range(40)]
    credit = (dice.random((3, 40)) < [[0.9], [0.5], [0.8]]).astype(float)
    return items, credit, dice.normal(size=(3, 40))


def test_shares_and_intervals_by_hand(asked):
    items, credit, nats = asked
    found = measure(items, credit, nats, seed=3)
    before, after, control = credit.mean(1) - 0.375
    assert found["chance"] == 0.375
    np.testing.assert_allclose(found["accuracy"][:, 0], credit[:2].mean(1))
    np.testing.assert_allclose(found["retained"], after / before)
    np.testing.assert_allclose(found["control_retained"], [[control / before]])
    np.testing.assert_allclose(found["change"], nats[1].mean() - nats[0].mean())
    np.testing.assert_allclose(found["control_change"], [[nats[2].mean() - nats[0].mean()]])
    assert (found["items"], found["entities"]) == ([40], [10])
    draws = []
    for counts in draw_counts(10, 3):  # whole entities, the same before and after
        drawn = np.repeat(np.arange(40), counts[np.arange(40) % 10])
        chance = np.mean([1 / len(items[i].options) for i in drawn])
        kept = (credit[1, drawn].mean() - chance) / (credit[0, drawn].mean() - chance)
        draws.append((kept, nats[1, drawn].mean() - nats[0, drawn].mean()))
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    np.testing.assert_allclose([found["retained_low"][0], found["change_low"][0]], low)
    np.testing.assert_allclose([found["retained_high"][0], found["change_high"][0]], high)
    names = [one.entity for one in items]
    ends = [mean_interval(credit[i], names, 3) for i in (0, 1)]
    np.testing.assert_allclose(found["accuracy_low"][:, 0], [low for low, _ in ends])


def test_pairing_makes_the_interval_of_a_constant_loss_narrow():
    dice = np.random.default_rng(0)
    nats = dice.normal(scale=10, size=50)
    found = measure([item(i) for i in range(50)], np.ones((2, 50)), np.stack([nats, nats - 1]), 0)
    np.testing.assert_allclose([found["change_low"], found["change_high"]], -1)


def test_a_task_that_was_not_above_chance_has_no_share_but_a_reason():
    items = [item(i, suite) for suite in ("a", "b") for i in range(20)]
    credit = np.zeros((3, 40))
    credit[:, :20], credit[:, 20::4] = 1, 1
    found = measure(items, credit, np.zeros((3, 40)), 0)
    assert found["tasks"] == ("a", "b") and found["reasons"][0] == ""
    assert "is not above chance, 0.25" in found["reasons"][1]
    for name in ("retained", "retained_low", "retained_high"):
        assert np.isfinite(found[name][0]) and np.isnan(found[name][1]), name
    assert np.isnan(found["control_retained"][0, 1]) and np.isfinite(found["change"]).all()


def test_one_entity_has_no_interval():
    found = measure([item(i, entity="x") for i in range(9)], np.ones((2, 9)), np.zeros((2, 9)), 0)
    assert np.isnan(found["retained"]) and "one entity" in found["reasons"][0]
    assert np.isnan(found["change_low"])


def test_no_change_among_few_is_not_certainty():
    nats = np.stack([np.zeros(20), -np.ones(20)])
    found = measure([item(i) for i in range(20)], np.ones((2, 20)), nats, 0)
    lost = 1 - 0.025 ** (1 / 20)  # none of 20 lost: so many may be
    np.testing.assert_allclose(found["retained_low"], 1 - lost / 0.75)
    assert found["retained"] == found["retained_high"] == 1


def test_the_result_holds_what_was_measured(suppression, engram, tokenizer, questions):
    frame = suppression.to_frame()
    assert frame.run.unique().tolist() == ["suppressed"] and len(frame) == 2
    row = frame[frame.task == "who"].iloc[0]
    index = suppression.tasks.index("who")
    assert (
        row.after == suppression.accuracy[1, index] and row["change"] == suppression.change[index]
    )
    of_task = suppression.item_task == index
    np.testing.assert_allclose(suppression.item_credit[1, of_task].mean(), row.after)
    slots = {0: [], 2: []}
    with_controls = ep.suppress(
        engram, tokenizer, questions, "mean", slots=slots, controls=2, items=4
    )
    frame = with_controls.to_frame()
    assert frame.run.tolist() == [n for n in ("suppressed", "control 0", "control 1") for _ in "ab"]
    assert (frame["change"] == 0).all() and "(2 draws, 0.00% to" in with_controls.summary()


@pytest.fixture
def drawn(engram, tokenizer, questions):
    """Two tasks whose answers the model has, one it has not, with controls."""
    from engram_model.tasks import answer_items
    from engram_model.tasks.questions import question_item

    items = [question_item({**q, "entity": q["id"]}, "") for q in questions]
    choices = [answer.choice for answer in answer_items(engram, tokenizer, items)]
    known = [{**q, "answer": c, "entity": q["id"]} for q, c in zip(questions, choices, strict=True)]
    unknown = [{**q, "suite": "unknown"} for q in questions]
    slots = {0: [5, 6, 7], 2: [300]}
    return ep.suppress(
        engram, tokenizer, [*known, *unknown], "random", slots=slots, controls=3, items=8
    )


def test_figure_of_what_is_kept(drawn):
    figure = drawn.figure()
    bars, rings = figure.data
    labels = list(figure.layout.yaxis.ticktext)
    assert bars.orientation == "h" and labels[0] == "unknown"  # no share: at the bottom
    shown = np.array(bars.x, dtype=float)
    order = [drawn.tasks.index(label) for label in labels]
    np.testing.assert_allclose(shown, drawn.retained[order], rtol=1e-6)
    assert np.isnan(shown[0]) and (np.diff(shown[1:]) >= 0).all()
    high = shown + np.array(bars.error_x.array, dtype=float)
    np.testing.assert_allclose(high, drawn.retained_high[order], rtol=1e-6)
    np.testing.assert_allclose(
        np.array(rings.x, float), drawn.control_retained[:, order].ravel(), rtol=1e-6
    )
    low, high = figure.layout.xaxis.range
    assert low < min(0, np.nanmin(shown)) and high > max(1, np.nanmax(shown)) and high - low <= 3.2
    texts = {note.text: note.x for note in figure.layout.annotations}
    assert texts["chance"] == 0 and texts["all kept"] == 1 and "was not above chance" in texts
    assert "Bars of 3 tasks" in figure.layout.meta["alt"]
    assert "unknown none" in figure.layout.meta["alt"]


def test_other_figures(drawn):
    after, before, chance, controls = drawn.figure("accuracy").data
    order = [drawn.tasks.index(t) for t in drawn.figure("accuracy").layout.yaxis.ticktext]
    for trace, values in ((before, drawn.accuracy[0]), (after, drawn.accuracy[1])):
        np.testing.assert_allclose(np.array(trace.x, float), values[order], rtol=1e-6)
    np.testing.assert_allclose(np.array(chance.x, float), drawn.chance[order], rtol=1e-6)
    assert len(controls.x) == 9
    change = drawn.figure("log_prob")
    assert "nats" in change.layout.xaxis.title.text
    assert (np.diff(np.array(change.data[0].x, float)) >= 0).all()
    with pytest.raises(UsageError, match="retained, accuracy, log_prob"):
        drawn.figure("loss")
