"""The command `tunesmith`: one file a verb."""
