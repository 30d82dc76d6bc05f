"""What a run has been through: its starts, rewinds, corruptions and resumes."""
