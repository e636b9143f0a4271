"""Thin stages: each loads, calls one function of mergecore, and saves or logs."""
