"""Roll out: how completions are made, by driving an engine."""

from coterie.pieces import discover

discover(__name__)
