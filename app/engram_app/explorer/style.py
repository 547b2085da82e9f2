"""Looks that Streamlit's theme has no option for. Holds no text of a model."""

STYLE = """<style>
.block-container { padding-top: 3.2rem; max-width: 76rem; }
.st-key-finding p { font-size: 1.12rem; line-height: 1.6; }
.st-key-finding { border-left: 3px solid #E08E00; padding-left: .9rem; }
h1 { letter-spacing: -0.015em; }
@media (prefers-reduced-motion: reduce) { * { transition: none !important; } }
</style>"""

NIGHT_STYLE = """<style>
button[kind^="primary"] p, button[kind^="primary"] [data-testid="stIconMaterial"] {
  color: #11151B; }
</style>"""  # on the light blue of the dark theme white could not be read
