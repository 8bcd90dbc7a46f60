"""Worlds of many turns."""

from coterie.environments.base import Environment, Episode, Step, World, episode_return

__all__ = ["Environment", "Episode", "Step", "World", "episode_return"]
