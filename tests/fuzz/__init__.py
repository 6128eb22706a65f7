"""Whole training steps, drawn at random, against a transcription in float64. `python -m tests.fuzz` runs it."""
