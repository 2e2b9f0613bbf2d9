"""Which optimizer, which schedule, which clipping."""
