"""Score: pieces that change the reward before credit is assigned."""

from coterie.pieces import discover

discover(__name__)
