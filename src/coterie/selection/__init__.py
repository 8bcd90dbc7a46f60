"""Select: filters decide which groups stay, weights which rollouts and decisions get gradient."""

from coterie.registry import discover

discover(__name__)
