"""Training. data, recipe, loop, checkpoint, predict, progress, parallel, corruptions and plots are the mechanism;
the rest are recipes, one per family, and tools: evaluate, report, benchmark, export, remaining."""
