"""The pipeline: fetch, train, evaluate, compare; and what tracks it."""
