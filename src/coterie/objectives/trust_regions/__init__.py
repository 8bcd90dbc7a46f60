"""Surrogates to maximise, from a ratio and an advantage."""

from coterie.registry import discover

discover(__name__)
