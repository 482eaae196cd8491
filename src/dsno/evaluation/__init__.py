"""Evaluation and report."""
