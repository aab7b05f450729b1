"""What all benchmarks share.

    sides ─▶ rounds ─▶ Group ─▶ docs/benchmarks/NAME.json ─▶ tables of the pages, plots
    (a process each)   (medians, ratios)                      (python -m bench.page)

A side is one program with one setting. It runs in a process of its own, in its own environment, and gives back
figures. Sides take turns, so that whatever else the machine does hits all of them; what is shown is the median of the
rounds, and the median of the ratios within rounds. Modules that run in the environments of other programs (`work`,
`rows`, `shapes`) import nothing but the standard library at their head.
"""
