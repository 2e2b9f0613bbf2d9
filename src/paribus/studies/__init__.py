"""Studies: one question, arms that differ in one declared thing, and a verdict with its uncertainty."""
