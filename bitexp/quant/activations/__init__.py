"""How activations become integers."""
