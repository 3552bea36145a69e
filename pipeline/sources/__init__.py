"""Readers of raw files, one file family each: bytes in, float64 tables and refusals out."""
