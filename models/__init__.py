"""The networks, one file a family, and beside each its benchmarks, in <family>.yaml.

A builder takes ``classes``, ``in_shape`` and options, and returns an nn.Module.
"""
