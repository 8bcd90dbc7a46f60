"""Policies: what takes decisions. Import the one you need; each loads its own heavy dependencies."""
