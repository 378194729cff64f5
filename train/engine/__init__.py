"""Training. flags: the configuration; loop: training; batches: what a step sees; checkpoint: files; network:
finished weights; metrics: functions of logits; distributed, device, progress, command. Imports augment, models and
train.data."""
