"""Files to samples to training batches: any LLaVA-style data, expanded to all scales and packed."""
