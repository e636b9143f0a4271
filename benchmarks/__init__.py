"""Costs and quality by measurement: ratios against a baseline of the same run, tables in `benchmarks/results/`."""
