"""What `jobs/benchmark.py` measures; the product does not import it."""
