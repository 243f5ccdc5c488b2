"""Forward processes: what is added to a crystal, and what is known about removing it."""
