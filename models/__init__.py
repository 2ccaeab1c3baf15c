"""The networks, one file a family; a builder takes ``classes``, ``in_shape`` and options, and returns an nn.Module."""
