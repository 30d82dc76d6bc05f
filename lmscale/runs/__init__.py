"""The run folder: its lease, attempts, logs, trackers, goodput; for whoever looks at it."""
