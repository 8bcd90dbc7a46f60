"""Credit: one baseline, then any number of modifiers, give the advantages."""

from coterie.pieces import discover

discover(__name__)
