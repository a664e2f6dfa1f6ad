"""What may be said: the schema of a config, the arguments of classes, errors in words."""
