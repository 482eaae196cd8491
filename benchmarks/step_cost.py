"""What a step of a student's training costs, counted."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from dsno.recipes import Recipe
from dsno.runs.build import new_operator
from dsno.teachers.store import Teacher


def step_cost(recipe: Recipe, teacher: Teacher) -> float:
    """Multiply-adds of the forward pass of one row of a class-conditional student's step.

    The mean of steps that compare the whole trajectory and of those that compare the sample alone.
    """
    operator = new_operator(recipe, teacher)
    noise = torch.zeros(1, *operator.sample_shape)
    condition = {"class_labels": torch.zeros(1, dtype=torch.long)}
    found = []
    for last_only in (False, True):
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            operator(noise, condition, last_only=last_only)
        found.append(counted.get_total_flops())
    whole, sample = found
    return sample + (whole - sample) / recipe.train.trajectory_every
