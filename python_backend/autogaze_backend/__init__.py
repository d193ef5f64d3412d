"""AutoGaze runtime."""
