"""Draw: which prompts the next update answers."""

from coterie.registry import discover

discover(__name__)
