"""Policies whose decisions are unmaskings: masked diffusion language models, which fill a canvas of masked places."""
