"""The processes of a corpus or shard build, and who takes over from whom."""
