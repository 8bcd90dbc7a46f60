"""How decisions become one number: the coefficient of each decision in the update."""

from coterie.registry import discover

discover(__name__)
