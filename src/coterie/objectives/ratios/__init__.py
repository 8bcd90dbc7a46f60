"""Importance ratios, [B,T] or [B]."""

from coterie.registry import discover

discover(__name__)
