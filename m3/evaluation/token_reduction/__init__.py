"""Training-free ways to reduce visual tokens: the controls that a trained ladder has to beat."""
