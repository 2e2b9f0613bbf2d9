"""Speeds as ratios: ours and a peer's, the same shape, one process, one thread count, interleaved rounds."""
