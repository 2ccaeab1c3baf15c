"""What every command shares: one line for a user's error, how it ends, its progress bars."""
