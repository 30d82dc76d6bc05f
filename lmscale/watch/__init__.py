"""Does it still move: heartbeats, the watchdog, the stacks of a process that hangs."""
