"""Published claims as files, and what runs say about them."""
