"""In a browser: which token needed the memory, which rows it read, and who else reads them."""

import re

import pytest
from browsing import pressed, settled

pytestmark = pytest.mark.browser
PERSON = "Zhelm Varnholm was born in 1912."


def opened(visit, path, figure, theme="light"):
    page = visit(path, theme=theme, height=2400)
    return drawn(page, figure)


def drawn(page, figure):
    page.wait_for_selector(f".st-key-figure_{figure} .js-plotly-plot .main-svg", state="attached")
    page.wait_for_timeout(300)
    return settled(page)


def click_cell(page, figure, row, column):
    """On a heatmap; moved to first, as a hand would."""
    x, y = page.evaluate(
        """([figure, row, column]) => {
            const plot = document.querySelector(`.st-key-figure_${figure} .js-plotly-plot`);
            const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
            return [box.x + xaxis._offset + xaxis.d2p(column),
                    box.y + yaxis._offset + yaxis.d2p(row)];
        }""",
        [figure, row, column],
    )
    page.mouse.move(x - 20, y)
    page.mouse.move(x, y, steps=4)
    page.wait_for_timeout(400)
    page.mouse.click(x, y)


def again(visit, page, figure):
    """The same address in a fresh session."""
    return opened(visit, page.url.removeprefix(re.match(r"http://[^/]+", page.url)[0]), figure)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_from_a_cell_of_the_map_to_the_rows_that_it_read(visit, shots, theme):
    page = opened(visit, "/gates", "gate_map", theme)
    page.get_by_text("Without the memory at").wait_for()
    click_cell(page, "gate_map", 0, 9)  # mouse: stream 0 at the token 9
    page.wait_for_url(lambda url: "pos=9" in url and "stream=0" in url)
    page.get_by_role("heading", name=re.compile("^What was looked up at .*, position 9")).wait_for()
    assert pressed(drawn(page, "effect_next")).startswith("token 9 ")
    page.screenshot(path=shots / f"gates-{theme}.png")
    looked_up = page.get_by_role("heading", name="Without the memory at").inner_text()
    link = page.get_by_role("link", name="These rows one by one")
    link.focus()
    link.press("Enter")
    page.wait_for_url(lambda url: "/slots" in url)
    drawn(page, "slots_row_figure")
    assert pressed(page).startswith("token 9 ")
    token = looked_up.split("“")[1].split("”")[0]
    assert token in page.get_by_role("heading", name=re.compile("^The rows of")).inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_typed_ngram_its_rows_and_who_shares_them(visit, shots, theme):
    page = opened(visit, "/slots", "slots_row_figure", theme)
    box = page.get_by_role("textbox", name="N-gram to look up")
    box.fill(" was born")
    box.press("Enter")
    page.get_by_role("heading", name="The rows of “·was·born”").wait_for()
    drawn(page, "slots_row_figure")
    assert "“·was·born” makes" in page.locator(".st-key-finding").inner_text()
    chooser = page.get_by_role("combobox", name=re.compile("Row to look at"))
    chooser.focus()  # keyboard: another of its rows
    chooser.press("ArrowDown")
    chooser.press("ArrowDown")
    chooser.press("Enter")
    page.wait_for_url(lambda url: "slots_row=" in url)
    said = page.get_by_text(re.compile(r"^Row [\d,]+ \(layer 1, 2-grams, head \d\) has norm"))
    row = said.inner_text()
    page.get_by_role("button", name="Find its contexts").click()
    page.get_by_text(re.compile("^Over .* documents row")).wait_for(timeout=240_000)  # it runs
    settled(page)
    page.screenshot(path=shots / f"slots-{theme}.png")
    fresh = again(visit, page, "slots_row_figure")
    assert fresh.get_by_text(row).count() == 1
    assert fresh.get_by_role("textbox", name="N-gram to look up").input_value() == " was born"


def test_a_cell_of_the_text_is_a_row(visit):
    page = opened(visit, f"/slots?text={PERSON}&pos=5", "slots_map")
    click_cell(page, "slots_map", 3, 9)
    page.wait_for_url(lambda url: "pos=9" in url and "slots_row=1%3A" in url)
    page.get_by_text(re.compile(r"^Row [\d,]+ \(layer 1, 2-grams, head 3\) has norm")).wait_for()


def test_a_hot_row_is_looked_at_from_its_table(visit):
    page = opened(visit, f"/slots?text={PERSON}", "slots_load")
    table = page.get_by_test_id("stDataFrame").nth(1)
    table.scroll_into_view_if_needed()
    box = table.bounding_box()
    page.mouse.click(box["x"] + 16, box["y"] + 35 + 17)  # of the first row, where it is selected
    page.wait_for_url(lambda url: "slots_row=1%3A" in url)
    row = re.search(r"slots_row=1%3A(\d+)", page.url)[1]
    page.get_by_text(re.compile(rf"^Row {int(row):,} \(layer 1")).wait_for()
