"""Policies whose decisions are denoising steps: flow-matching models, sampled with noise."""
