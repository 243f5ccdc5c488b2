"""Judging a generator: samples and a reference go in; metrics, a table and a report come out."""
