"""The Streamlit explorer. `serve` starts it; `app.py` is what Streamlit runs, page by page."""
