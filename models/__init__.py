"""The networks, one file for each family, with its benchmarks beside it in <family>.yaml.

A builder takes ``classes``, ``in_shape`` and options, and returns an nn.Module.
"""
