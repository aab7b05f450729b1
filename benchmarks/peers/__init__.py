"""Other programs: their environments (`NAME.txt`), and how each of them does the work that is measured.

The modules run in those environments, so they import nothing of tunesmith, and of `bench` only what needs nothing.
"""
