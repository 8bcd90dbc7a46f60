"""Score: pieces that change the reward before credit is assigned."""

from coterie.registry import discover

discover(__name__)
