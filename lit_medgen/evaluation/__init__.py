"""Evaluation: samples against real people, with floors, intervals and nulls, as a report."""
