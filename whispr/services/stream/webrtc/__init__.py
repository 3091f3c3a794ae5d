"""Streams by WebRTC: published by WHIP (RFC 9725), heard by WHEP (draft-ietf-wish-whep)."""
