"""AutoGaze export."""
