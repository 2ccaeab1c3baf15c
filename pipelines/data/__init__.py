"""From raw files to tensors: sources and archives, arrays and splits, transforms, batches."""
