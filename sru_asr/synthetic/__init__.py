"""Synthetic speech: a text-to-speech voice, the room around it, and corpora made of both."""
