"""Training: recipes, stages, the objective's metrics, and a thin layer over transformers'
Trainer.
"""
