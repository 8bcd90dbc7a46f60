"""Tasks: prompts, verifiers and held-out problems."""

from coterie.pieces import discover

discover(__name__)
