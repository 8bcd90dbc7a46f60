"""Tasks: prompts, verifiers and held-out problems."""

from coterie.registry import discover

discover(__name__)
