"""Pairwise rewards: a judge compares rollouts of one prompt, a scheme says who meets whom and what that is worth."""
