"""Update: ratio × trust region × aggregation + terms, or one whole loss."""

from coterie.objectives import aggregations, losses, ratios, terms, trust_regions

__all__ = ["aggregations", "losses", "ratios", "terms", "trust_regions"]
