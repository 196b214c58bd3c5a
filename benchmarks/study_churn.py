"""Churn on click data: how much predictions change when a model is trained again with other seeds.

Each kind of model is trained with several seeds, each of which gives it other initial weights and another order of the
same data; the churn is the mean absolute difference of two trainings' predictions, over all pairs (Anil et al. 2018,
Section 3.4.1).
"""

from __future__ import annotations
