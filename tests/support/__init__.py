"""What tests share and fixtures are made of, one subject a module."""
