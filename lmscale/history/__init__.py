"""What a run has been through: its starts, rewinds and resumes."""
