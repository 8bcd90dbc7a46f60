"""Credit: one baseline, then any number of modifiers, give the advantages."""

from coterie.registry import discover

discover(__name__)
