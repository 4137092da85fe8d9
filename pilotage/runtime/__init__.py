"""What a run is and how it moves: a pure state machine without clock, I/O or randomness."""
