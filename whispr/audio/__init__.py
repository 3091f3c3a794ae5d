"""Formats of sound: packets, containers, playlists. Pure: values and bytes."""
