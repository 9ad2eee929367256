"""Ways to write examples from evidence: one file each, all with the same one function."""
