"""In a browser: where the memory settles a token, and which layers of two models are alike."""

import pytest
from browsing import pressed, settled

pytestmark = pytest.mark.browser
SENTENCE = "The Battle of Waterloo was fought in 1815."


def still(page):
    """Wait for the run that what was just done begins."""
    page.wait_for_timeout(300)
    return settled(page)


def opened(visit, path, theme="light"):
    page = visit(path, theme=theme, height=1500)
    page.wait_for_selector(".js-plotly-plot .heatmaplayer image")
    return still(page)


def cell(page, key, row, column):
    """Middle of a cell of the first heatmap, in pixels of the window."""
    return page.evaluate(
        """([key, row, column]) => {
            const plot = document.querySelector(`.st-key-figure_${key} .js-plotly-plot`);
            plot.scrollIntoView({block: 'center'});
            const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
            return [box.x + xaxis._offset + xaxis.d2p(column),
                    box.y + yaxis._offset + yaxis.d2p(row)];
        }""",
        [key, row, column],
    )


def click(page, key, row, column):
    page.mouse.click(*cell(page, key, row, column))
    still(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_the_memory_does_at_a_depth(visit, shots, theme):
    page = opened(visit, f"/lens?text={SENTENCE}&pos=12", theme)
    page.get_by_role("radio", name="Memory off").click()
    page.get_by_text("engram-mini, memory off").first.wait_for()
    still(page)
    click(page, "lens_grid", 2, 13)  # mouse: after two blocks, at the token 13
    assert pressed(page).startswith("token 13 ")
    assert "pos=13" in page.url and "lens_depth=2" in page.url and "lens_beside" in page.url
    page.get_by_text("position 13", exact=False).first.wait_for()
    again = opened(visit, "/" + page.url.split("/", 3)[3], theme)
    assert pressed(again).startswith("token 13 ")
    assert again.locator(".js-plotly-plot").first.locator(".heatmaplayer image").count() == 3
    again.screenshot(path=shots / f"lens-{theme}.png")


def test_a_cell_from_the_keyboard(visit):
    page = opened(visit, f"/lens?text={SENTENCE}")
    strip = page.locator('button.token[aria-pressed="true"]')
    strip.focus()
    before = pressed(page)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    still(page)
    assert pressed(page) != before
    depth = page.get_by_role("combobox", name="Blocks run")
    depth.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    still(page)
    assert "lens_depth=" in page.url


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_pair_of_layers(visit, shots, theme):
    page = opened(visit, "/alignment", theme)
    page.get_by_text("The largest shift").wait_for()
    click(page, "alignment", 5, 3)  # mouse
    page.get_by_text("Layer 3 of engram-mini and layer 5 of moe-mini").wait_for()
    assert "alignment_a=3" in page.url or "alignment_b=5" in page.url
    layer = page.get_by_role("combobox", name="Layer of engram-mini")
    layer.focus()  # keyboard
    layer.press("ArrowDown")
    layer.press("ArrowDown")
    layer.press("Enter")
    still(page)
    assert not page.get_by_text("Layer 3 of engram-mini and layer 5 of moe-mini").count()
    page.get_by_role("radio", name="RSA").click()
    page.get_by_text("RSA, 2,955 samples of 496 documents").wait_for()
    still(page).screenshot(path=shots / f"alignment-{theme}.png")
