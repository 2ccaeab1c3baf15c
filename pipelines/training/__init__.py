"""What one trial consists of: its specification and store, the LightningModule, losses, optimisers, checkpoints."""
