"""Draw: which prompts the next update answers."""

from coterie.pieces import discover

discover(__name__)
