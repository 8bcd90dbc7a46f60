"""Worlds of many turns."""

from coterie.environments.base import Environment, Episode, SharedEnvironment, Step, World, episode_return

__all__ = ["Environment", "Episode", "SharedEnvironment", "Step", "World", "episode_return"]
