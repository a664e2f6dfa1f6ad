"""Comparing runs: folders -> runs -> rows with statistics -> tables, plots and one page."""
