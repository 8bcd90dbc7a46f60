"""Optimizers."""

from coterie.pieces import discover

discover(__name__)
