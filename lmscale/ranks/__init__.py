"""Which rank this process is among how many, how ranks talk, and how a process ends."""
