"""Training on labels: losses that ask for depth up to scale and shift."""
