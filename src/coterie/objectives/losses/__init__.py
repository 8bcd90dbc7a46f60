"""Whole losses that take the place of ratio and trust region."""

from coterie.registry import discover

discover(__name__)
