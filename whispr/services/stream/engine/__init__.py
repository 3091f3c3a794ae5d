"""What makes a stream's sound: sources, the clock, the ladder of renditions, recordings."""
