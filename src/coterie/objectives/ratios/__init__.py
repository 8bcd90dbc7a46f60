"""Importance ratios, [B,T] or [B]."""

from coterie.pieces import discover

discover(__name__)
