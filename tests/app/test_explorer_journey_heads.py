"""Journeys in a browser: which head the memory serves, and who wrote a logit."""

import re
from urllib.parse import quote

import pytest
from browsing import pressed, settled, tokens

pytestmark = pytest.mark.browser
TEXT = "Diana, Princess of Wales, was born in 1961."
LAYERS, HEADS = 8, 4  # of engram-mini
SLOW = 120_000  # the first page of a server opens the model and its hooks


def told(page, pattern):
    """Wait until the page says so."""
    page.get_by_text(re.compile(pattern)).first.wait_for(timeout=SLOW)
    settled(page)


def click_in(page, key, across, down):
    """Click in a figure, at these shares of its width and height."""
    area = page.locator(f".st-key-figure_{key} .nsewdrag").first
    area.scroll_into_view_if_needed()
    page.locator(f".st-key-figure_{key} .heatmaplayer image").first.wait_for()
    box = area.bounding_box()
    place = box["x"] + across * box["width"], box["y"] + down * box["height"]
    page.mouse.move(*place)
    page.mouse.click(*place)


def option(page, name, value):
    """An option of a row of buttons."""
    return page.locator(f".st-key-{name} button").filter(has_text=re.compile(f"^{value}$"))


def shoot(page, path):
    page.wait_for_timeout(500)
    page.locator("[data-testid=stMainBlockContainer]").screenshot(path=path)


def test_which_head_the_memory_serves_by_mouse(visit, shots):
    page = visit(f"/heads?text={quote(TEXT)}", height=2400)
    told(page, "heads from layer 1 on move")
    click_in(page, "heads_moved", 2.5 / HEADS, (LAYERS - 3 - 0.5) / LAYERS)
    told(page, "^Head 2 of layer 3, without the memory less with it")
    click_in(page, "heads_layer", 0.5 / HEADS, 0.75)
    told(page, "^Head 0 of layer 3")
    assert {"layer=3", "heads_head=0"} <= set(page.url.partition("?")[2].split("&"))
    last = len(tokens(page)) - 1
    told(page, f"position {last}, looks at")
    page.get_by_role("button", name=re.compile("^token 5 ")).click()
    told(page, "position 5, looks at")
    shoot(page, shots / "heads.png")


def test_a_head_by_keyboard_and_its_permalink(visit, shots):
    page = visit(f"/heads?text={quote(TEXT)}&layer=6", theme="dark", height=2400)
    told(page, r"^Head \d of layer 6")
    page.get_by_role("button", name=re.compile("^token 4 ")).focus()
    page.keyboard.press("Enter")
    told(page, "position 4, looks at")
    option(page, "heads_shown", "Without").press("Enter")
    told(page, "^All heads of layer 6, without the memory$")
    shoot(page, shots / "heads_dark.png")
    again = visit("/" + page.url.split("/", 3)[3])
    told(again, "^All heads of layer 6, without the memory$")
    told(again, "position 4, looks at")


def test_which_experts_change(visit, shots):
    page = visit(f"/heads?text={quote(TEXT)}&pos=3", theme="dark", height=2400)
    told(page, "heads from layer 1 on move")
    option(page, "heads_part", "Experts").click()
    told(page, "A token keeps of its experts")
    click_in(page, "heads_experts", 2.5 / len(tokens(page)), 0.5)
    told(page, "position 2, and their weights")
    option(page, "heads_change", "Rows permuted").click()
    told(page, "each token keeps: rows permuted")
    shoot(page, shots / "experts_dark.png")


def test_who_wrote_a_logit(visit, shots):
    page = visit(f"/attribution?text={quote(TEXT)}&pos=5", height=2400)
    told(page, "^The logit of “")
    box = page.get_by_role("combobox", name="Logit of")
    box.fill("·Paris")
    box.press("Enter")
    told(page, "^The logit of “·Paris” after")
    click_bar(page, "attribution_memory", "1_engram_order3_head1")
    told(page, "^Row [0-9,]+ of layer 1, read for “.*” by head 1 of order 3, adds")
    shoot(page, shots / "attribution.png")
    way = page.get_by_role("button", name="This memory in Gates")
    way.focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Gates", level=1).wait_for()
    settled(page)
    assert pressed(page).startswith("token 5 ")


def click_bar(page, key, name):
    """The middle of a bar, found by its name on the axis."""
    figure = page.locator(f".st-key-figure_{key}")
    figure.scroll_into_view_if_needed()
    figure.locator(".barlayer path").first.wait_for()
    names = figure.locator(".ytick text").all_text_contents()
    box = figure.locator(".barlayer .point path").nth(names.index(name)).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)


def test_a_component_by_keyboard(visit, shots):
    page = visit(
        f"/attribution?text={quote(TEXT)}&attribution_heads=true", theme="dark", height=2400
    )
    told(page, "^The logit of “")
    box = page.get_by_role("combobox", name="Component")
    box.fill("3_attn_head2")
    box.press("Enter")
    told(page, r"^3_attn_head2 \(attention\) adds")
    shoot(page, shots / "attribution_dark.png")
    way = page.get_by_role("button", name="These heads")
    way.focus()
    page.keyboard.press("Enter")
    told(page, "^Head 2 of layer 3")
