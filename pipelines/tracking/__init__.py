"""MLflow: the records of trials and benchmarks, and the helper process that sends them."""
