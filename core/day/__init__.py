"""A day: journal → clear → net → settle → reconcile → seal. day.py composes it."""
