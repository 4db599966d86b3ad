"""Training on labels: losses that compare depth up to scale and shift."""
