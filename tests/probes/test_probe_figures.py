"""Figures: kind of trace, axes, labels, and that the values reached them."""

import numpy as np
import pytest

from engram_model.errors import UsageError


def value(trace, axis):
    return np.array(getattr(trace, axis), dtype=float)


@pytest.mark.parametrize("what", ["gate", "score", "added"])
def test_gate_figure(gates, what):
    figure = gates.figure(what)
    (trace,) = figure.data
    assert trace.type == "heatmap"
    np.testing.assert_allclose(value(trace, "z"), gates.values(what), rtol=1e-6)
    assert list(trace.x) == list(range(len(gates.tokens)))
    assert list(figure.layout.xaxis.ticktext) == [
        token.replace("<", "&lt;").replace(">", "&gt;") for token in gates.tokens
    ]
    assert list(figure.layout.yaxis.ticktext) == ["0", "2"]
    assert figure.layout.yaxis.range[0] < figure.layout.yaxis.range[1]  # first layer at the bottom
    assert figure.layout.meta["alt"].startswith("Heatmap of 2 layers")


def test_gate_colours_are_centred(gates):
    gate = gates.figure("gate").data[0]
    assert (gate.zmin, gate.zmid, gate.zmax) == (0, 0.5, 1)
    score = gates.figure("score").data[0]
    assert score.zmid == 0 and score.zmin == -score.zmax
    assert score.zmax == pytest.approx(np.abs(gates.values("score")[:, 1:]).max())


def test_gate_figure_of_one_layer_shows_its_streams(gates):
    figure = gates.figure("gate", layer=2)
    np.testing.assert_allclose(value(figure.data[0], "z"), gates.gate[1].T, rtol=1e-6)
    assert figure.layout.yaxis.title.text == "stream"
    one = gates.figure("gate", layer=2, stream=3).data[0]
    np.testing.assert_allclose(value(one, "z")[0], gates.gate[1, :, 3], rtol=1e-6)


def test_lens_curve_has_a_band(lens):
    figure = lens.figure("entropy")
    band, line = figure.data
    mean, low, high = lens.curve("entropy")
    np.testing.assert_allclose(value(line, "y"), mean, rtol=1e-6)
    np.testing.assert_allclose(value(band, "y"), [*high, *low[::-1]], rtol=1e-6)
    assert figure.layout.xaxis.title.text == "blocks run (0: embedding)"
    assert "nats" in figure.layout.yaxis.title.text
    assert [shape.x0 for shape in figure.layout.shapes] == [0, 2]  # the memory layers
    assert "Line chart" in figure.layout.meta["alt"]


def test_rank_has_a_log_axis(lens):
    assert lens.figure("rank").layout.yaxis.type == "log"


@pytest.mark.parametrize("what", ["kl", "top1_prob"])
def test_lens_grid(text_lens, what):
    figure = text_lens.figure(what)
    (trace,) = figure.data
    assert trace.type == "heatmap"
    np.testing.assert_allclose(value(trace, "z"), text_lens.grid(what), rtol=1e-6)
    shown = trace.text[3][2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert shown == text_lens.top1_texts[3][2]
    assert "blocks" in figure.layout.yaxis.title.text
    assert "Grid of 4 depths" in figure.layout.meta["alt"]


@pytest.mark.parametrize("what", ["rank", "final_rank"])
def test_ranks_are_coloured_by_their_logarithm(text_lens, what):
    figure = text_lens.figure(what, "grid", positions=(2, 7))
    (trace,) = figure.data
    expected = np.log10(text_lens.grid(what)[:, 2:7])
    np.testing.assert_allclose(value(trace, "z"), expected, rtol=1e-5, atol=1e-6)
    assert list(trace.x) == [2, 3, 4, 5, 6] and trace.customdata[0][0] == text_lens.tokens[2]
    assert figure.layout.coloraxis.colorbar.ticktext[:3] == ("1", "10", "100")


def test_grids_of_two_lenses_have_one_scale_and_a_difference(text_lens, text_lens_off):
    result = text_lens.minus(text_lens_off)
    figure = result.figure("kl", "grid", positions=(1, 6))
    first, second, difference = figure.data
    for trace, lens in ((first, text_lens), (second, text_lens_off)):
        np.testing.assert_allclose(value(trace, "z"), lens.grid("kl")[:, 1:6], rtol=1e-6)
        assert trace.coloraxis == "coloraxis"
    both = text_lens.grid("kl") - text_lens_off.grid("kl")
    np.testing.assert_allclose(value(difference, "z"), both[:, 1:6], rtol=1e-5, atol=1e-6)
    scale = figure.layout.coloraxis2
    assert difference.coloraxis == "coloraxis2" and scale.cmin == -scale.cmax
    assert scale.cmax >= np.abs(both[1:, ~text_lens.special]).max() - 1e-6
    other = np.array(text_lens.top1_texts) != np.array(text_lens_off.top1_texts)
    assert np.array_equal(np.array(difference.text) == "≠", other[:, 1:6])
    assert "memory off" in figure.layout.meta["alt"] and "difference" in figure.layout.meta["alt"]


def test_clicks_cover_all_grids_of_one_shape(text_lens, text_lens_off):
    from engram_probes.figures.clicks import clickable

    figure = text_lens.minus(text_lens_off).figure("kl", "grid", positions=(1, 6))
    assert clickable(figure) == 5
    covers = [trace for trace in figure.data if trace.type == "scatter"]
    assert [len(trace.x) for trace in covers] == [5 * text_lens.depths] * 3
    assert len({trace.yaxis for trace in covers}) == 3


def test_soft_alignment_by_each_measure(alignment):
    figure = alignment.figure("soft")
    lines = {t.name: value(t, "y") for t in figure.data if t.mode == "lines+markers"}
    np.testing.assert_allclose(lines["Debiased CKA"], alignment.soft_index, rtol=1e-6)
    np.testing.assert_allclose(
        lines["RSA, Spearman correlation"], alignment.second_soft[2], rtol=1e-6
    )
    assert alignment.summary() in figure.layout.meta["alt"]


@pytest.mark.parametrize("what", ["cka", "rsa", "sinks"])
def test_a_pair_of_layers_with_its_row_and_column(alignment, what):
    figure = alignment.figure(what, pair=(0, 2))
    shown, null = alignment.shown(what)
    lines = [t for t in figure.data if t.mode == "lines+markers"]
    np.testing.assert_allclose(value(lines[0], "y"), shown[:, 2], rtol=1e-6)
    np.testing.assert_allclose(value(lines[1], "y"), shown[0, :], rtol=1e-6)
    rings = [t for t in figure.data if t.name == "this pair"]
    assert [list(ring.x) for ring in rings] == [[0], [2]]
    chance = [t for t in figure.data if t.mode == "lines"]
    np.testing.assert_allclose(value(chance[0], "y"), null[:, 2], rtol=1e-6)
    with pytest.raises(UsageError, match="layers 9 and 2"):
        alignment.figure(what, pair=(9, 2))


def test_a_single_text_has_a_curve_without_band(text_lens):
    (line,) = text_lens.figure("kl", view="curve").data
    np.testing.assert_allclose(value(line, "y"), text_lens.curve("kl")[0], rtol=1e-6)


def test_difference_figure_has_both_and_their_difference(lens, twin_lens):
    result = lens.minus(twin_lens)
    figure = result.figure("kl")
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    index = result.metrics.index("kl")
    expected = (lens.curve("kl")[0], twin_lens.curve("kl")[0], result.difference[index])
    for line, curve in zip(lines, expected, strict=True):
        np.testing.assert_allclose(value(line, "y"), curve, rtol=1e-5)
    assert lines[2].yaxis == "y2"


def test_alignment_figure(alignment):
    figure = alignment.figure()
    left, right, diagonal, soft = figure.data
    np.testing.assert_allclose(value(left, "z"), alignment.matrix, rtol=1e-5)
    np.testing.assert_allclose(value(right, "z"), alignment.null_mean, rtol=1e-4)
    np.testing.assert_allclose(value(soft, "y"), alignment.soft_index, rtol=1e-5)
    assert soft.line.color == "white" and list(diagonal.x) == [0, 2]
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-0.1, 1)
    assert figure.layout.xaxis.title.text.startswith("layer of")
    assert "Heatmap of Debiased CKA" in figure.layout.meta["alt"]


def test_second_opinions_are_drawn_beside_chance(alignment):
    for measure, name in enumerate(("neighbours", "procrustes", "rsa")):
        left, right, _, soft = alignment.figure(name).data
        np.testing.assert_allclose(value(left, "z"), getattr(alignment, name), rtol=1e-5)
        np.testing.assert_allclose(value(right, "z"), alignment.second_null_mean[measure], 1e-4)
        np.testing.assert_allclose(value(soft, "y"), alignment.second_soft[measure], rtol=1e-5)


def test_sinks_are_drawn_beside_cka_without(alignment):
    left, right, _ = alignment.figure("sinks").data
    np.testing.assert_allclose(value(left, "z"), alignment.with_sinks, rtol=1e-5)
    np.testing.assert_allclose(value(right, "z"), alignment.matrix, rtol=1e-5)
