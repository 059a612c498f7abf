"""Model folders: configs, tensors, fingerprints, the hub; those of others, checked."""
