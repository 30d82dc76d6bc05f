"""Bytes and paths: atomic writes, rows of JSON, locks, places elsewhere. No torch."""
