"""Memory, time and cost of a run's step on a pod that is not here."""
