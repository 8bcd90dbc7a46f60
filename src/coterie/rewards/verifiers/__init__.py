"""Verifiers: is this completion right?"""

from coterie.pieces import discover

discover(__name__)
