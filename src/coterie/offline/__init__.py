"""Learning from rollouts and preferences that were recorded before: nothing is generated, nothing is graded."""
