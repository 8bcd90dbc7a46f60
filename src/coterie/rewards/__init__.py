"""Score: verifiers and reward functions give components; combination and shaping make the reward of them."""
