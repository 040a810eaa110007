"""Ready-made agents that need no network: what makes the embedded default useful at once."""
