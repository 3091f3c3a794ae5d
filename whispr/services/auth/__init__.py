"""Accounts, sessions, and the tokens that prove them."""
