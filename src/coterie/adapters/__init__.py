"""Worlds of other libraries, played as ours."""
