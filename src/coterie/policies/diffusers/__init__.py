"""Pipelines of diffusers as policies: their denoising steps are decisions, as those of `coterie.policies.flow`."""
