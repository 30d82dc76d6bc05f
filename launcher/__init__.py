"""Starts the ranks of a run, on one machine or under a scheduler. Never loads torch."""
