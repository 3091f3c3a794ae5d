"""Senders: one per kind of push service, all behind `port.Sender`."""
