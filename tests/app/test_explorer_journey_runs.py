"""In a browser: a run is found, the paper beside ours, texts compared, a model opened."""

import re

import pytest
from browsing import settled, tokens

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_run_is_found_by_its_words_and_laid_beside_the_paper(visit, shots, theme):
    page = settled(visit("/runs", theme=theme, height=1700))
    page.get_by_role("textbox", name="Search").fill("suppress-mini")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="results/suppress-mini").wait_for()
    page.get_by_role("button", name="Beside the paper's figure 6").press("Enter")
    page.get_by_role("heading", name="results/paper/fig6").wait_for()
    page.locator(".js-plotly-plot").nth(1).wait_for()
    assert "run=results%2Fpaper%2Ffig6" in page.url
    settled(page).screenshot(path=shots / f"runs-{theme}.png")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_two_texts_are_compared_from_a_link(visit, shots, theme):
    page = visit("/compare?compare_what=Two+texts", theme=theme, height=1700)
    page.get_by_role("button", name="Another battle").press("Enter")
    page.get_by_text(re.compile("nats a token .* surprised than second text")).wait_for()
    assert any("Water" in text or "ater" in text for text in tokens(page))
    page.locator(".js-plotly-plot").first.wait_for()
    settled(page).screenshot(path=shots / f"compare-{theme}.png")


def test_a_hostile_path_is_one_line_and_a_good_one_is_chosen(visit, shots):
    page = settled(visit("/models", height=1500))
    box = page.get_by_role("textbox", name="Folder on this machine")
    box.fill("/dev/zero")
    box.press("Enter")
    page.get_by_text("is not a checkpoint").wait_for()
    box.fill("moe-nano")
    box.press("Enter")
    page.get_by_text("moe-nano is open").wait_for()
    assert "model=moe-nano" in page.url
    settled(page).screenshot(path=shots / "models.png")
