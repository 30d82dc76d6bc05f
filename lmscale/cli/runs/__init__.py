"""``lmscale runs``: list, status, logs, audit, cancel."""
