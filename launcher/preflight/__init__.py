"""Are the allocated nodes fit? Probe, judge, cordon."""
