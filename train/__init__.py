"""Training: data.py, recipe.py, loop.py, checkpoint.py and predict.py are the mechanism, the rest are recipes and tools."""
