"""Distillation objectives: pure functions of the student's logits and the teachers' soft targets.

    loss = alpha T^2 KL(softmax(z_teacher / T) || softmax(z_student / T)) + (1 - alpha) CE(z_student, y)

All take logits (N, K), soft targets (N, K) (teacher probabilities at the temperature T, rows summing to 1) and hard
targets float (N, K) (one-hot, or mixed), and average over the batch. T^2 keeps the gradient's size independent of T
(Hinton et al. 2015, section 2.1).
"""

import torch
import torch.nn.functional as F

DKD_BETA = 8.0  # weight of the non-target classes, by default in the code of Zhao et al. 2022; also 2 or 6 there
STANDARDIZED = 10.0  # Sun et al. 2024 weigh the teachers by 9 and the labels by 0.1: standardizing shrinks the gradient


def distillation_loss(student_logits: torch.Tensor, soft_targets: torch.Tensor, hard_targets: torch.Tensor,
                      temperature: float = 4.0, alpha: float = 0.9, objective: str = "kd",
                      smoothing: float = 0.0) -> dict[str, torch.Tensor]:
    """The weighted sum above, "loss", and its two parts unweighted, "soft" and "hard": a dict of scalars.

    alpha weighs the teachers, 1 - alpha the labels: at alpha 0 the loss is the plain cross entropy with the hard
    targets. objective: how student and teachers are compared, a key of OBJECTIVES; smoothing: of the hard targets; the
    row of an image without a label stays zero.
    """
    transform, divergence = OBJECTIVES[objective]
    soft = divergence(transform(student_logits), soft_targets, hard_targets, temperature)
    smooth = (1 - smoothing) * hard_targets + smoothing * hard_targets.mean(1, keepdim=True)
    hard = F.cross_entropy(student_logits, smooth)
    return {"loss": alpha * soft + (1 - alpha) * hard, "soft": soft, "hard": hard}


def soft_targets_of(teacher_logits: torch.Tensor, temperature: float = 4.0, objective: str = "kd") -> torch.Tensor:
    """The soft targets (N, K) that `distillation_loss` expects, from teacher logits (N, K)."""
    transform, _ = OBJECTIVES[objective]
    return (transform(teacher_logits) / temperature).softmax(1)


def standardize(logits: torch.Tensor) -> torch.Tensor:
    """Logits (N, K) with mean 0 and standard deviation 1 in each row (Sun et al. 2024, eq. 9)."""
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


def kl_divergence(student_logits: torch.Tensor, soft_targets: torch.Tensor, hard_targets: torch.Tensor,
                  temperature: float) -> torch.Tensor:
    """T^2 KL(soft targets || softmax(student logits / T)), batch mean (Hinton et al. 2015); labels unused."""
    log_student = (student_logits / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_student, soft_targets, reduction="batchmean")


def decoupled_divergence(student_logits: torch.Tensor, soft_targets: torch.Tensor, hard_targets: torch.Tensor,
                         temperature: float, beta: float = DKD_BETA) -> torch.Tensor:
    """T^2 (TCKD + beta NCKD), batch mean: decoupled knowledge distillation (Zhao et al. 2022, eq. 7).

    TCKD compares the two-way split target against rest, NCKD the distribution among the rest, which plain KL weighs
    by 1 - p_target. The target is the class with the largest share in the hard targets; for images
    without a label, or with labels for half of their area or less, it is the teacher's most likely class.
    """
    labelled = hard_targets.sum(1, keepdim=True) > 0.5
    target = F.one_hot(torch.where(labelled, hard_targets, soft_targets).argmax(1), hard_targets.shape[1]).bool()
    log_student = (student_logits / temperature).log_softmax(1)
    log_teacher = soft_targets.clamp_min(torch.finfo(soft_targets.dtype).tiny).log()
    tckd = F.kl_div(two_way(log_student, target), two_way(log_teacher, target), reduction="none", log_target=True)
    nckd = F.kl_div(leave_out(log_student, target), leave_out(log_teacher, target).exp(), reduction="none")
    return temperature**2 * (tckd.sum(1) + beta * nckd.masked_fill(target, 0).sum(1)).mean()


def two_way(log_probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (N, 2) of the target and of all others, from those of the classes (N, K)."""
    inside = log_probabilities.masked_fill(~target, -torch.inf).logsumexp(1)
    outside = log_probabilities.masked_fill(target, -torch.inf).logsumexp(1)
    return torch.stack([inside, outside], 1)


def leave_out(log_probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (N, K) among the classes outside `target`; the target's own entry has no meaning."""
    outside = log_probabilities.masked_fill(target, -torch.inf)
    return (log_probabilities - outside.logsumexp(1, keepdim=True)).masked_fill(target, 0)


# {name: (transformation of teacher and student logits, comparison of the results)}
OBJECTIVES = {
    "kd": (lambda logits: logits, kl_divergence),
    "dkd": (lambda logits: logits, decoupled_divergence),
    "standardized": (standardize, lambda *batch: STANDARDIZED * kl_divergence(*batch)),
}
