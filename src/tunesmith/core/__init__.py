"""The shared words of the house; nothing here imports torch or another room."""
