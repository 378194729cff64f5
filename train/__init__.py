"""Training: what a person runs. Recipes, one per family, and tools; what they share is in train/engine."""
