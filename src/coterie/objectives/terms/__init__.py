"""Penalties added to the loss: KL, entropy."""

from coterie.pieces import discover

discover(__name__)
