"""Where checkpoints lie: a folder, a URL, the disks of the nodes."""
