"""What a flipped bit does to a packed model, and what other images do to it."""
