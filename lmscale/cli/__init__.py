"""The command line: one file per group of commands, in the order of the flow."""
