"""The report as one HTML file: what the stages left behind, checked, drawn and inlined."""
