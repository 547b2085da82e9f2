"""Figures of results: the only modules that import plotly. Each is a function Result -> Figure."""
