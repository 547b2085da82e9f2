"""Reading a page of the explorer that was run without a browser."""

import json

TEXT = "The miller of Ostrava counts the boats at dusk."


def texts(at):
    """All that a page says, Markdown's escapes taken out."""
    said = [element.value for kind in (at.markdown, at.caption, at.subheader) for element in kind]
    return "\n".join(said).replace("\\", "")


def figures(at):
    """The figures on a page, as plotly's JSON."""
    return [json.loads(chart.proto.spec) for chart in at.get("plotly_chart")]
