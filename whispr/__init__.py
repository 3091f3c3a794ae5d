"""Whispr: a self-hosted backend for chat, presence and live audio, in structured concurrency."""

__version__ = "0.1.0"
