"""The command line: one file a verb; what they share is the screen and the progress of training."""
