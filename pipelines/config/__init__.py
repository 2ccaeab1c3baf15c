"""YAML to frozen dataclasses, and every check on what a user may write."""
