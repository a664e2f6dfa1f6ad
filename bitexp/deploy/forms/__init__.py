"""Networks in full precision in other forms: stacks of one-bit blocks, and deltas of one bit on a base."""
