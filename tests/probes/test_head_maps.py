"""Attention maps: patterns against transformers' own, what is moved by hand, controls as large."""

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.errors import UsageError
from engram_probes.figures.head_maps import head_at
from engram_probes.head_maps_run import blocked, moved
from engram_probes.memory_changes import INTACT, MemoryChanges
from engram_probes.suppression import suppressed

TEXT = "The harbour master of Varnholm counts the boats. The harbour master counts."


@pytest.fixture(scope="module")
def one(engram, tokenizer):
    return ep.attention_map(engram, tokenizer, TEXT, draws=3)


def test_patterns_are_the_models_own(engram, tokenizer, one, attentions):
    pattern = attentions(engram, tokenizer, TEXT)
    with suppressed(engram):
        silenced = attentions(engram, tokenizer, TEXT)
    np.testing.assert_allclose(one.pattern, pattern, atol=1e-5)
    np.testing.assert_allclose(one.changed, silenced, atol=1e-5)
    away = np.abs(silenced - pattern).sum(-1) / 2
    np.testing.assert_allclose(one.moved, away, atol=1e-5)
    np.testing.assert_allclose(one.heads_moved(), away[..., 1:].mean(-1), atol=1e-5)
    layer, head = np.unravel_index(away[..., 1:].mean(-1).argmax(), away.shape[:2])
    assert one.most_moved() == (layer, head) and f"head {layer}.{head} with" in one.summary()


def test_moved_by_hand():
    intact = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    other = torch.tensor([[1.0, 0, 0], [0.0, 1.0, 0], [0.3, 0.3, 0.4]])
    np.testing.assert_allclose(moved(other, intact), [0, 0.5, 0.1], atol=1e-7)


def test_blocks_by_hand():
    pattern = torch.tensor(
        [[1.0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0.1, 0.2, 0.7, 0, 0],
         [0, 0, 0.4, 0.6, 0], [0.1, 0.1, 0.1, 0.3, 0.4]]
    )  # fmt: skip
    expected = [[1, 0, 0], [0.15, 0.85, 0], [0.2, 0.4, 0.4]]
    np.testing.assert_allclose(blocked(pattern, 2), expected, atol=1e-6)
    assert blocked(pattern, 1) is pattern


def test_a_long_text_is_kept_in_blocks(engram, tokenizer, one):
    few = ep.attention_map(engram, tokenizer, TEXT, draws=3, most=10)
    cells = few.pattern.shape[-1]
    assert few.block == -(-len(few.tokens) // 10) > 1 and cells <= 10
    assert few.changed.shape == few.pattern.shape == (3, few.heads, cells, cells)
    np.testing.assert_allclose(few.pattern.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(few.moved, one.moved)  # of tokens all the same
    np.testing.assert_array_equal(few.control_draws, one.control_draws)
    axis = few.figure("pattern").layout.xaxis
    assert axis.range[1] >= len(few.tokens) - 0.5
    frame = few.keys_frame(0, 0, len(few.tokens) - 1)
    assert set(frame["position"]) == set(range(0, few.block * cells, few.block))


def test_draws_of_a_batch_are_as_large_and_differ(engram, tokenizer):
    """A batch after an intact pass of one text: each row is a draw of its own."""
    from engram_probes.capture import Subject, heard

    subject = Subject.of(engram)
    ids = subject.encode(tokenizer, TEXT)
    changes = MemoryChanges(subject, ("noise", "other"), 0)
    heard_out = {}
    for condition, batch in ((INTACT, [ids]), ("noise", [ids] * 3), ("other", [ids] * 3)):

        def hear(name, tensor, condition=condition):
            heard_out[condition, name] = tensor

        with heard(subject.memories[0], hear), changes.made(condition):
            subject.run(batch)
    intact = heard_out[INTACT, "out"]
    for control in ("noise", "other"):
        added = heard_out[control, "out"] - intact
        assert added.shape[0] == 3
        np.testing.assert_allclose(
            added.norm(dim=-1), intact.norm(dim=-1).expand(3, -1, -1), rtol=1e-3, atol=1e-5
        )
        assert not torch.allclose(added[0], added[1]) or control == "other"


def test_controls(engram, tokenizer, one):
    assert one.controls == ("noise", "other") and one.control_draws.shape[:2] == (2, 3)
    np.testing.assert_allclose(
        one.control_draws.mean(1), one.control_moved[..., 1:].mean(-1), atol=1e-6
    )
    assert one.control_draws.std(1).max() > 1e-4
    again = ep.attention_map(engram, tokenizer, TEXT, draws=3)
    np.testing.assert_array_equal(again.control_draws, one.control_draws)
    other = ep.attention_map(engram, tokenizer, TEXT, draws=3, seed=1)
    assert np.abs(other.control_draws - one.control_draws).max() > 1e-4
    np.testing.assert_array_equal(one.beyond(), one.heads_moved() > one.control_draws.max((0, 1)))


def test_layers_before_the_memory_are_not_moved(make_model, tokenizer):
    result = ep.attention_map(make_model(memory_layers=(2,)), tokenizer, TEXT, draws=2)
    assert not result.moved[:2].any() and not result.control_moved[:, :2].any()
    assert result.moved[2].max() > 1e-3 and not result.beyond()[:2].any()


def test_a_model_without_a_memory(twin, tokenizer):
    result = ep.attention_map(twin, tokenizer, TEXT)
    assert result.changed is None and result.controls == () and result.how == ""
    assert (
        "has no memory" in result.summary()
        and len(result.to_frame()) == result.pattern[..., 0, 0].size
    )
    assert "attention" in result.figure("layer").layout.meta["alt"].lower()
    assert result.figure("pattern").data[0].zmin == 0
    for wrong in (lambda: result.figure("heads"), lambda: result.values(0, "without")):
        with pytest.raises(UsageError, match="no memory"):
            wrong()
    assert list(result.keys_frame(0, 1, 4).columns) == ["position", "token", "with the memory"]


def test_hooks_of_a_bridge_are_live(engram, tokenizer):
    bridge = em.hooked(engram, tokenizer)
    hook = ("blocks.1.attn.hook_pattern", lambda pattern, hook: torch.zeros_like(pattern))
    with bridge.hooks(fwd_hooks=[hook]):
        result = ep.attention_map(bridge, tokenizer, TEXT, draws=1)
    assert not result.pattern[1].any() and not result.moved[1].any() and result.pattern[0].any()


def test_saved_and_opened(one, tmp_path):
    again = ep.load_result(one.save(tmp_path))
    assert type(again) is ep.AttentionMap and again.summary() == one.summary()
    np.testing.assert_array_equal(again.changed, one.changed)


def test_progress_counts_the_passes(engram, tokenizer):
    seen = []
    ep.attention_map(
        engram, tokenizer, TEXT, draws=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (5, 5) and seen[0] == (1, 5)


def test_small_patterns_say_which_head_they_are(one):
    figure = one.figure("layer", 1, shown="with")
    grid = np.array(figure.data[0].z, float)
    heads = {head_at(one, 0, column) for column in range(grid.shape[1])}
    assert heads - {None} == set(range(one.heads))
    column = next(c for c in range(grid.shape[1]) if head_at(one, 0, c) == 1)
    side = one.pattern.shape[-1]
    tile = grid[:side, column : column + side]
    np.testing.assert_allclose(np.nan_to_num(tile), one.pattern[1, 1], rtol=1e-6)
    assert head_at(one, 0, column - 1) is None and head_at(one, 0, column - 2) == 0
    assert head_at(one, grid.shape[0] * 5, 0) is None


def test_small_patterns_of_a_longer_text_keep_the_largest(engram, tokenizer, monkeypatch, one):
    monkeypatch.setattr("engram_probes.figures.head_maps.TILE", 8)
    grid = np.array(one.figure("layer", 2).data[0].z, float)
    assert grid.shape[0] <= 8
    difference = one.values(2)
    assert np.nanmax(np.abs(grid)) == pytest.approx(np.abs(difference).max())


def test_figures(one):
    heads = one.figure("heads").data[0]
    np.testing.assert_allclose(np.array(heads.z, float), one.heads_moved(), rtol=1e-6)
    assert (np.array(heads.text) == "●").tolist() == one.beyond().tolist()
    pattern = one.figure("pattern", 2, 1)
    drawn = np.array(pattern.data[0].z, float)
    np.testing.assert_allclose(
        np.nan_to_num(drawn), one.changed[2, 1] - one.pattern[2, 1], atol=1e-7
    )
    assert pattern.data[0].zmin == -pattern.data[0].zmax
    frame = one.to_frame()
    assert len(frame) == 3 * one.heads and {"moved", "noise", "noise_most"} <= set(frame.columns)
    keys = one.keys_frame(2, 1, 6)
    assert len(keys) == 7 and keys["with the memory"].is_monotonic_decreasing
    np.testing.assert_allclose(keys["with the memory"].sum(), 1, atol=1e-5)


@pytest.mark.parametrize("text", ["a", "The"])
def test_a_text_of_one_token(engram, tokenizer, text):
    result = ep.attention_map(engram, tokenizer, text, draws=1)
    assert np.isfinite(result.heads_moved()).all() and result.figure("pattern").data


def test_wrong_use(engram, tokenizer, one):
    cases = {
        "the text is empty": lambda: ep.attention_map(engram, tokenizer, " "),
        "reads one text": lambda: ep.attention_map(engram, tokenizer, [TEXT]),
        "no change 'noise'": lambda: ep.attention_map(engram, tokenizer, TEXT, how="noise"),
        "no control 'zero'": lambda: ep.attention_map(engram, tokenizer, TEXT, controls=("zero",)),
        "at least 1 draw": lambda: ep.attention_map(engram, tokenizer, TEXT, draws=0),
        "no figure of 'x'": lambda: one.figure("x"),
        "no attention in layer 7": lambda: one.figure("layer", 7),
        "no head 99": lambda: one.figure("pattern", 1, 99),
        "nothing called 'x'": lambda: one.values(0, "x"),
        "no position 999": lambda: one.keys_frame(0, 0, 999),
    }
    for message, wrong in cases.items():
        with pytest.raises(UsageError, match=message):
            wrong()
