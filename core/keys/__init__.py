"""Keys: what stands behind each MAC, seal, code and stored secret."""
