"""What leaves the house: frozen layers, packed files, their size and cost."""
