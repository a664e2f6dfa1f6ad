"""Which layer gets how many bits: sensitivities, an exact program, presets."""
