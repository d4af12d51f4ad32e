"""Faults in the package, by room; `make mutants` plants them one at a time."""
