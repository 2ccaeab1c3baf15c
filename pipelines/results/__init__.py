"""Verdicts, figures and the page."""
