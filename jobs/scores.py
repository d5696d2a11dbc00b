"""How good predictions are: torchmetrics, reduced over processes, in numbers that a report can hold."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MultilabelAveragePrecision,
    MultilabelStatScores,
)

BINS = 15  # of confidence, as in arXiv:1706.04599


class Scores:
    """Of one head. Feed `update` on every process; `compute` gives the same on all.

    One label a clip: top-1, top-5, the mean of the classes' accuracies, the expected calibration error, and
    for each class how many there are, which share is right, and what it is mostly taken for. Any number of
    labels: mean average precision, and that of each class.
    """

    def __init__(self, classes: Sequence[str], device: torch.device, *, multi_label: bool = False) -> None:
        self._classes, count = tuple(classes), len(classes)
        self.multi_label = multi_label
        self._metrics: dict[str, Metric] = {}
        if multi_label:
            self._metrics["precision"] = MultilabelAveragePrecision(count, average=None)
            self._metrics["counts"] = MultilabelStatScores(count, average=None)
        else:
            self._metrics["confusion"] = MulticlassConfusionMatrix(count)
            self._metrics["calibration"] = MulticlassCalibrationError(count, n_bins=BINS)
            self._metrics["top5"] = MulticlassAccuracy(count, top_k=min(5, count), average="micro")
        for metric in self._metrics.values():
            metric.to(device)

    def update(self, logits_BC: Tensor, targets: Tensor) -> None:
        """Float32 logits, averaged over a video's views, and its class, or zeros and ones (B, C).

        For a process without videos B is 0: average precision is reduced over something of every process.
        """
        scores_BC = logits_BC.sigmoid() if self.multi_label else logits_BC.softmax(1)
        for name, metric in self._metrics.items():
            if len(logits_BC) or name == "precision":  # counts do without, and take no empty batch
                metric.update(scores_BC, targets.long())

    def compute(self) -> dict[str, Any]:
        """{name: number}, and under "classes" a row for each."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No positive samples")  # such a class is left out below
            found = {name: metric.compute() for name, metric in self._metrics.items()}
        if self.multi_label:
            rows: list[dict[str, Any]] = []
            counts = found["counts"][:, -1].tolist()
            for name, count, precision in zip(
                self._classes, counts, found["precision"].tolist(), strict=True
            ):
                row = {"class": name, "videos": count, "average_precision": precision if count else None}
                rows.append(row)
            known = [row["average_precision"] for row in rows if row["videos"]]
            return {"mean_average_precision": sum(known) / max(1, len(known)), "classes": rows}
        confusion_CC = found["confusion"].cpu()
        counts, right = confusion_CC.sum(1), confusion_CC.diagonal()
        there = counts > 0
        result: dict[str, Any] = {
            "videos": int(counts.sum()),
            "top1": float(right.sum() / counts.sum()),
            "mean_class_accuracy": float((right[there] / counts[there]).mean()),
            "calibration_error": float(found["calibration"]),
        }
        if len(self._classes) > 5:
            result["top5"] = float(found["top5"])
        result["classes"] = [self._row(k, confusion_CC) for k in range(len(self._classes))]
        result["confusion"] = confusion_CC.tolist()
        return result

    def _row(self, k: int, confusion_CC: Tensor) -> dict[str, Any]:
        count, wrong = int(confusion_CC[k].sum()), confusion_CC[k].clone()
        wrong[k] = 0
        other = int(wrong.argmax())
        return {
            "class": self._classes[k],
            "videos": count,
            "accuracy": float(confusion_CC[k, k]) / count if count else None,
            "taken for": f"{self._classes[other]} ({int(wrong[other])})" if int(wrong[other]) else "",
        }
