"""Analyses of a model other than its accuracy."""
