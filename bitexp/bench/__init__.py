"""Measurements: what a precision costs. `python -m bitexp bench`"""
