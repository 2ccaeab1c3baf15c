"""The report as one HTML file, made of the stages' checked outputs."""
