"""A chemical system explored: compositions sampled, relaxed and set against the hull of known phases."""
