"""MLflow: what is recorded, and the helper process that sends it."""
