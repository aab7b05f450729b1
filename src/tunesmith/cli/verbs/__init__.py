"""The verbs: one file each, which holds one function of the same name, its help and its examples."""
