"""Colours of tokens: readable everywhere, ordered by lightness, neutral where they should be."""

import pytest

from engram_app.colours import RAMPS, THEMES, Scale, contrast, rgb, shade

PLACES = [i / 200 for i in range(201)]
PAPER = {"light": "#FFFFFF", "dark": "#11151B"}


@pytest.mark.parametrize(("theme", "kind"), RAMPS)
def test_text_can_be_read_on_every_colour(theme, kind):
    for place in PLACES:
        background, text = shade(theme, kind, place)
        assert contrast(rgb(background), rgb(text)) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_lightness_alone_orders_a_scale(theme):
    paper = rgb(PAPER[theme])
    away = [contrast(rgb(shade(theme, "one", place)[0]), paper) for place in PLACES]
    assert away == sorted(away) and away[0] == 1
    below = [contrast(rgb(shade(theme, "two", place)[0]), paper) for place in PLACES[:101]]
    above = [contrast(rgb(shade(theme, "two", place)[0]), paper) for place in PLACES[100:]]
    assert below == sorted(below, reverse=True) and above == sorted(above)


def test_one_sided_scale():
    scale = Scale("added", 0.0, 2.0, 0.0)
    assert [scale.place(value) for value in (-1, 0, 1, 2, 9)] == [0, 0, 0.5, 1, 1]
    assert scale.strength(1) == 0.5
    assert scale.shades(0)["light"][0] == "#FFFFFF"


def test_two_sided_scale_is_neutral_at_its_centre():
    scale = Scale("gate", 0.0, 1.0, 0.5)
    assert [scale.strength(value) for value in (0, 0.25, 0.5, 1)] == [1, 0.5, 0, 1]
    assert scale.shades(0.5) == {"light": ["#FFFFFF", "#000000"], "dark": ["#11151B", "#FFFFFF"]}


def test_black_on_white_has_the_greatest_contrast():
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((1, 0, 0), (1, 0, 0)) == 1
