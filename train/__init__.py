"""Training: data, recipe, loop, checkpoint, predict and progress are the mechanism, the rest are recipes and tools."""
