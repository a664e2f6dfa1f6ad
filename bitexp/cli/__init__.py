"""The door: the command line around Hydra."""
