"""Golden losses: what short trainings of the rows' own recipes came to, a folder a platform, a file a benchmark.

A change that should not alter numbers leaves these files as they are. One that should says so in CHANGELOG.md, writes
them anew with ``python -m tests.golden``, and the rows that it touches are run again.
"""
