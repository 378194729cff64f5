"""Distillation: teachers to labels, labels to one student, a student to a submission."""
