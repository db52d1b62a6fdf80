"""People: what is known of them, and how they prove to portals and departments who they are."""
