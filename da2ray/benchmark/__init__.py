"""The measurements of `jobs/benchmark.py`. The product does not import this package."""
