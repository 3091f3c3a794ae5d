"""Ways to hear a stream over HTTP and WebSocket."""
