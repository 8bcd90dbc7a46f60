"""What is learned from demonstrations beside the rollouts."""

from coterie.registry import discover

discover(__name__)
