"""Cards and e-cards: how they come to be, live and end, the codes they show, and the deny list."""
