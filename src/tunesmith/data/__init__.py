"""Rows and files: from a path to Records, from Records to tokens on disk; nothing here imports torch."""
