"""Text without a framework: documents, tokenizers, and the tokens of a corpus on disk."""
