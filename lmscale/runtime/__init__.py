"""What every part of a run shares: atomic files, ranks, collectives, logs, trackers, stopping."""
