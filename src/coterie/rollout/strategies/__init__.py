"""Roll out: how completions are made, by driving an engine."""

from coterie.registry import discover

discover(__name__)
