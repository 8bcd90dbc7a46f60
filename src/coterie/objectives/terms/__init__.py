"""Penalties added to the loss: KL, entropy."""

from coterie.registry import discover

discover(__name__)
