"""What is learned from demonstrations beside the rollouts."""

from coterie.pieces import discover

discover(__name__)
