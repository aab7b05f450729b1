"""The same task with several methods under the same budget: one table, one plot, a verdict in words."""
