"""Side-by-side benchmarks. `python -m bench` runs them all; each writes bench/results/NAME.json."""


class BenchError(Exception):
    """A bench cannot run; the message says why."""
