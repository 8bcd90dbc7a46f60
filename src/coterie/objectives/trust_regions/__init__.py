"""Surrogates to maximise, from a ratio and an advantage."""

from coterie.pieces import discover

discover(__name__)
