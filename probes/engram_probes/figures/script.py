"""The plotly.js that draws the figures, for pages that must draw without a network."""


def plotly_js() -> str:
    """The whole library as one script, its licence in the first lines."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
