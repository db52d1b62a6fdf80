"""Who may call what, and what is remembered of it."""
