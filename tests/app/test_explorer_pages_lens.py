"""The lens page, run without a browser: alone, beside others, in error."""

import numpy as np
import pytest
from explorer_page import TEXT, figures, texts

import engram_model as em
import engram_probes as ep


def turned(at, **choices):
    """The page with these options chosen."""
    for key, value in choices.items():
        at.button_group(key=key).set_value(value).run()
    assert not at.exception
    return at


def frames(at):
    return [table.value for table in at.dataframe]


def test_alone_at_first(explorer, pair):
    at = explorer("lens")
    grid, curve = figures(at)
    assert grid["data"][0]["type"] == "heatmap" and len(curve["data"]) == 1
    expected = ep.logit_lens(*em.load(pair / "memory"), TEXT)
    assert expected.summary() in texts(at)
    last = len(expected.tokens) - 1
    [table] = frames(at)
    assert table.token.tolist() == expected.cell_frame(2, last).token.tolist()
    assert "--twin" not in at.code[0].value and "ep.logit_lens(" in at.code[1].value


def test_memory_off_beside_it(explorer, pair):
    at = turned(explorer("lens"), lens_beside="off")
    assert "memory, memory off" in texts(at)
    grids = [t for t in figures(at)[0]["data"] if t["type"] == "heatmap"]
    assert len(grids) == 3
    assert "--without-memory" in at.code[0].value and "without_memory=True" in at.code[1].value
    assert len(frames(at)) == 2


def test_beside_its_twin(explorer):
    at = turned(explorer("lens"), lens_beside="twin", lens_colour="rank")
    titles = {a["text"] for a in figures(at)[0]["layout"]["annotations"]}
    assert {"memory", "plain"} <= titles
    assert "--twin" in at.code[0].value and "is settled" in texts(at)


def test_likeliest_tokens_of_a_cell(explorer, pair):
    at = explorer("lens", pos="3")
    at.selectbox(key="lens_depth").set_value("1").run()
    expected = ep.logit_lens(*em.load(pair / "memory"), TEXT).cell_frame(1, 3)
    np.testing.assert_allclose(frames(at)[0].prob_here, expected.prob_here)
    at.selectbox(key="lens_depth").set_value("0").run()
    assert frames(at)[0].token.tolist() != expected.token.tolist()


def test_a_model_without_a_tuned_lens_says_how_to_make_one(explorer):
    at = turned(explorer("lens"), lens_through="tuned")
    assert "engram tune-lens" in at.info[0].value.replace("\\", "")
    assert len(figures(at)) == 2  # the plain one is shown


def test_tuned_lens_against_the_plain(explorer, pair):
    model, tokenizer = em.load(pair / "memory")
    texts_ = [f"The miller of Varnholm counts {i} boats at dusk." for i in range(80)]
    lens = ep.tune_lens(model, tokenizer, texts_, tokens=400, held_out_tokens=50)
    try:
        lens.save(pair / "memory")
        at = turned(explorer("lens"), lens_through="tuned", lens_beside="other")
        assert not at.info and "memory, tuned" in texts(at) and "memory, plain" in texts(at)
        assert "--tuned" in at.code[0].value and "TunedLens.load" in at.code[1].value
    finally:
        for name in lens.files:
            (pair / "memory" / name).unlink(missing_ok=True)


def test_without_a_memory_or_a_twin_it_stands_alone(explorer):
    at = explorer("lens", models=("plain",), twin="nothing")
    assert at.button_group(key="lens_beside").options == ["Alone"]
    assert len(figures(at)) == 2 and not at.error


def test_long_texts_are_shown_by_the_window(explorer):
    at = explorer("lens", text="The miller counts boats. " * 8, pos="20")
    z = figures(at)[0]["data"][0]
    assert z["x"]["shape"] == "18" if "shape" in z["x"] else True
    assert "Positions 11 to 28 of" in texts(at)


@pytest.mark.parametrize("text, said", [("  ", "the text is empty"), ("boats " * 200, "reads 192")])
def test_texts_that_cannot_be_read(explorer, text, said):
    at = explorer("lens", text=text)
    assert said in at.error[0].value.replace("\\", "") and at.text_area(key="text")
