"""Streams recorded: files that a crash leaves good, their way into the object store, and out of it again."""
