"""The road from config to result."""
