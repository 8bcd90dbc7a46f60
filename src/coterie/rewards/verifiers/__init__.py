"""Verifiers: is this completion right?"""

from coterie.registry import discover

discover(__name__)
