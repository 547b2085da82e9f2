"""Journeys through the explorer in a real headless Chromium."""

import re

import pytest
from browsing import DRAWN, SENTENCE, pressed, read, settled, tokens, type_text

from engram_app.examples import CAPITALS

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_first_screen_is_a_result(visit, shots, theme):
    page = visit(theme=theme, height=1250)
    assert len(tokens(page)) > 10
    page.get_by_text("The memory adds most at").wait_for()
    page.get_by_role("table", name="Next tokens").wait_for()
    scripts = [e.get_attribute("src") or "" for e in page.locator("script").all()]
    assert not page.locator(".js-plotly-plot").count() and "plotly" not in str(scripts).lower()
    page.wait_for_timeout(500)
    page.screenshot(path=shots / f"overview-{theme}.png")


def test_typing_a_sentence_changes_the_strip(visit):
    page = visit()
    before = tokens(page)
    type_text(page, SENTENCE)
    read(page, SENTENCE)
    assert tokens(page) != before
    page.get_by_text("Capitals").click()
    read(page, CAPITALS)
    assert page.get_by_label("Text to read").input_value() == CAPITALS


def test_clicked_token_is_kept_on_every_page(visit, shots):
    page = visit()
    type_text(page, SENTENCE)
    read(page, SENTENCE)
    page.get_by_role("button", name=re.compile("^token 3 ")).click()
    page.wait_for_url(lambda url: "pos=3" in url)
    settled(page)
    assert pressed(page).startswith("token 3 ")
    page.get_by_text("position 3").first.wait_for()
    for name in ("Gates", "Lens"):
        page.get_by_test_id("stSidebarNav").get_by_text(name, exact=True).click()
        page.wait_for_selector(DRAWN, state="attached")
        settled(page)
        assert pressed(page).startswith("token 3 ")
        assert page.get_by_label("Text to read").input_value() == SENTENCE
        assert "pos=3" in page.url and "text=The" in page.url
        page.wait_for_timeout(500)
        page.screenshot(path=shots / f"{name.lower()}-clicked.png")


def test_arrow_keys_move_between_tokens(visit):
    page = visit("/?pos=2")
    page.wait_for_selector("button.token")
    page.get_by_role("button", name=re.compile("^token 2 ")).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "pos=3" in url)


def test_permalink_opens_the_same_in_a_fresh_session(visit):
    page = visit(f"/gates?text={SENTENCE}&pos=4")
    page.wait_for_selector(DRAWN, state="attached")
    page.get_by_test_id("stButtonGroup").get_by_text("Gate", exact=True).click()
    page.wait_for_url(lambda url: "what=" in url)
    page.get_by_text("Gate by stream and position").wait_for()
    other = visit(page.url.removeprefix(re.match(r"http://[^/]+", page.url)[0]))
    other.get_by_text("Gate by stream and position").wait_for()
    assert tokens(other) == tokens(page)
    assert pressed(other) == pressed(page) and pressed(other).startswith("token 4 ")


def test_markup_stays_text(visit):
    page = visit()
    markup = "<script>alert(1)</script> <img src=x onerror=alert(2)> **bold** $x$ :red[no]"
    type_text(page, markup)
    read(page, markup)
    page.get_by_role("button", name=re.compile("^token 2 ")).click()
    page.wait_for_url(lambda url: "pos=2" in url)
    settled(page)
    assert page.locator("main img[src=x], [data-testid=stMain] script").count() == 0


@pytest.mark.parametrize(
    ("name", "theme"), [("gates", "dark"), ("lens", "light"), ("alignment", "dark")]
)
def test_page_draws(visit, shots, name, theme):
    page = visit(f"/{name}", theme=theme, height=1700)
    page.wait_for_selector(DRAWN, state="attached")
    settled(page)
    page.wait_for_timeout(800)
    assert page.get_by_role("heading", level=1).count() == 1
    page.screenshot(path=shots / f"{name}-{theme}.png")


def test_error_is_one_line(visit):
    page = visit()
    type_text(page, ".," * 1900)
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert re.search(r"[\d,]+ tokens with <bos> and engram-mini reads 1,024", alert.inner_text())
