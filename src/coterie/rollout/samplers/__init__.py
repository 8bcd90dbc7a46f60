"""The rule of a denoising step: mean and standard deviation of the next state, given state and velocity.

Convention: sigma in [0,1] is the noise level, x_sigma = (1 - sigma) x0 + sigma n, the policy predicts v = n - x0, and
sampling runs from sigma 1 down to 0, so that dt = after - sigma < 0. x0hat = x - sigma v, nhat = x + (1 - sigma) v.

A rule takes x, v [N,...] and sigma, after, cap [N,1,...]: the noise level before and after the step, and the second
highest of the schedule. It returns the mean [N,...] and the standard deviation [N,1,...]; 0 is a step without noise.
"""

from coterie.registry import discover

discover(__name__)
