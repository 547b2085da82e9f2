"""Every page by axe-core, light and dark: nothing serious or critical."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import settled

from engram_app.explorer.pages import SECTIONS

pytestmark = pytest.mark.browser
PAGES = [name for pages in SECTIONS.values() for name in pages]
OPTIONS = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"],
    "resultTypes": ["violations"],
}
MATCHES = "(element, selector) => element.matches(selector)"
NAVIGATION = '[data-testid="stSidebarNavItems"]'
NOT_OURS = {  # (rule, selector of what it is not asked of) -> why we cannot change it
    ("list", NAVIGATION): "st.navigation wraps each section of its list in a div",
    ("listitem", f"{NAVIGATION} *"): "the same",
}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_has_a_serious_violation(visit, server, theme):
    page, axe, found = visit(theme=theme), Axe(), {}
    for name in PAGES:
        page.goto(f"{server}/{'' if name == 'overview' else name}")
        settled(page)
        page.wait_for_timeout(300)  # colours change over a moment
        violations = axe.run(page, options=OPTIONS).response["violations"]
        found[name] = [line for violation in violations for line in lines(page, violation)]
    said = [f"{name}: {line}" for name in found for line in found[name]]
    assert not said, "\n".join(said)


def lines(page, violation):
    """One for each element, if it matters and is ours."""
    rule = violation["id"]
    others = [selector for forgiven, selector in NOT_OURS if forgiven == rule]
    return [
        f"{rule}: {node['target']} {node['html'][:160]} {node['failureSummary'][:300]!r}"
        for node in violation["nodes"]
        if violation["impact"] in ("serious", "critical")
        and not any(page.locator(node["target"][-1]).first.evaluate(MATCHES, s) for s in others)
    ]
