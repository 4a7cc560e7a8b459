"""How the formats grow, and the frozen readers of the older ones."""
