"""Live audio: streams, who may listen, and what is told of them."""
