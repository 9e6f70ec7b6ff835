"""Benchmarks: one file per figure, named after its area. `make bench` runs them and writes docs/figures.md."""
