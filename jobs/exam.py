"""An exam of embeddings: what is learned from some videos, and what is found of the others by it.

N videos, B of them at a time, K neighbours of each, D channels, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.embedded import Embedded, open_embedded
from jobs.folds import Fold, apart, asked, folds, hold_out, on_both_sides
from jobs.labels import classes_of, targets
from jobs.linear import Linear, Regression
from jobs.neighbours import hits, nearest, votes
from jobs.progress import Progress
from jobs.questions import ProbeSpec
from jobs.scores import Scores
from jobs.texts import captioned, clip_of, prompted
from models.text import TextEncoder
from pipeline.errors import SpecListError

LINEAR, ZERO_SHOT = "linear probe", "zero-shot"
QUERIES = 1 << 11  # videos that are asked about at a time


@dataclass(frozen=True)
class Exam:
    """Videos, what they show, and which of them are learned from."""

    embedded: Embedded
    classes: tuple[str, ...]
    targets: np.ndarray
    folds: list[Fold]


def opened(spec: ProbeSpec) -> Exam:
    """What a spec asks about, once it is known that it can be asked; no embedding is read.

    Raises:
        SpecError: the embeddings, their labels, splits or groups are not what the spec needs.
    """
    embedded = asked(spec, open_embedded(spec.embeddings))
    (classes,) = classes_of({"": embedded}, {"": ""}, {}).values()
    marks = targets(embedded, classes, multi_label=spec.multi_label)
    if len(classes) < 2:
        problem = f"all videos are labelled {classes[0]!r}; there is nothing to tell apart"
        raise SpecListError([f"embeddings: {problem}"])
    if spec.text is not None:
        clip_of(spec.text, embedded)
    return Exam(embedded, classes, marks, folds(spec, embedded))


def doubts(exam: Exam) -> list[str]:
    """What makes the numbers say too much, or too little."""
    lines, unknown = [], set[int]()
    for fold in exam.folds:
        shared = [] if len(exam.folds) > 1 else on_both_sides(exam.embedded, fold)  # groups never are
        if shared:
            some = f"{len(shared):,} groups or files, {shared[0]} for one"
            lines.append(f"WARNING: {some}, are learned from and asked about: the scores are too good")
        if exam.targets.ndim == 1:
            unknown.update(np.setdiff1d(exam.targets[fold.test], exam.targets[fold.train]).tolist())
    if unknown:
        names = ", ".join(exam.classes[k] for k in sorted(unknown)[:3])
        where = "in a fold " if len(exam.folds) > 1 else ""
        lines.append(f"note: classes that are {where}asked about but not learned: {len(unknown):,} ({names})")
    return lines


class Examiner:
    """Embeddings in memory, and everybody's scores."""

    def __init__(self, spec: ProbeSpec, exam: Exam, encoder: TextEncoder | None, progress: Progress) -> None:
        self._spec, self._exam, self._progress = spec, exam, progress
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._x_ND = exam.embedded.vectors()
        self._targets = torch.from_numpy(exam.targets)
        self._encoder = None if encoder is None else encoder.to(self._device)
        self._prompted = None
        if self._encoder is not None and spec.text is not None:
            self._prompted = prompted(self._encoder, exam.classes, spec.text.prompts).T
        self._regression = Regression(self._x_ND, self._targets, len(exam.classes), self._device)
        self._apart = apart(exam.embedded).indices.to_numpy()
        self._hits = torch.zeros(len(spec.recall), dtype=torch.int64, device=self._device)
        self._scores: dict[str, Scores] = {}

    def report(self) -> dict[str, Any]:
        """Everything that report.json holds."""
        exam, known = self._exam, self._exam.embedded.known
        rows = []
        for number, fold in enumerate(exam.folds, 1):
            if len(exam.folds) > 1:
                self._progress.status(f"group {number:,} of {len(exam.folds):,}: {fold.name}")
            rows.append(self._fold(fold))
        tested = np.sort(np.concatenate([fold.test for fold in exam.folds]))
        views = np.bincount(exam.embedded.video_of_row)[known["number"].to_numpy()]
        found: dict[str, Any] = {
            "kind": self._spec.kind,
            "model": exam.embedded.made.model.name,
            "embeddings": self._spec.embeddings,
            "digest": exam.embedded.digest,
            "views": int(views.sum()),
            "videos": len(known),
            "tested": len(tested),
            "judges": {name: scores.compute() for name, scores in self._scores.items()},
            "folds": rows,
        }
        for k in self._spec.neighbours if exam.targets.ndim == 1 else ():
            found["judges"][f"{k}-NN"].pop("top5", None)  # most classes have no vote, and so no order
        if exam.targets.ndim == 1:
            found["largest_class"] = sum(self._largest(fold) for fold in exam.folds) / len(tested)
            shares = (self._hits / len(tested)).tolist()
            same = {str(k): share for k, share in zip(self._spec.recall, shares, strict=True)}
            found["recall"] = {"same label": same} if same else {}
            if same and self._encoder is not None:
                captions = known["caption"].take(tested).to_pylist()
                x_ND = self._x_ND[torch.from_numpy(tested)]
                found["recall"] |= captioned(self._encoder, captions, x_ND, self._spec.recall)
        return found

    def _largest(self, fold: Fold) -> int:
        """How many videos would be right if all were said to be of the class that most are learned of."""
        learned = np.bincount(self._exam.targets[fold.train], minlength=len(self._exam.classes))
        return int((self._exam.targets[fold.test] == learned.argmax()).sum())

    def _fold(self, fold: Fold) -> dict[str, Any]:
        """Learn from one side, ask about the other; {judge: its share of hits, or its mean precision}."""
        train = fold.train
        linear = self._regression.chosen(train, hold_out(self._apart[train], self._spec.seed))
        here: dict[str, Scores] = {}
        for start in range(0, len(fold.test), QUERIES):
            some = torch.from_numpy(fold.test[start : start + QUERIES])
            x_BD, marks = self._x_ND[some].to(self._device), self._targets[some].to(self._device)
            for name, logits_BC in self._answers(x_BD, marks, train, linear).items():
                for scores in (self._scores, here):
                    if name not in scores:
                        several = self._spec.multi_label
                        scores[name] = Scores(self._exam.classes, self._device, multi_label=several)
                    scores[name].update(logits_BC, marks)
        counts = {"train": len(train), "test": len(fold.test), "weight_decay": linear.decay}
        return {"fold": fold.name, **counts, **{name: _headline(one.compute()) for name, one in here.items()}}

    def _answers(self, x_BD: Tensor, marks: Tensor, train: np.ndarray, linear: Linear) -> dict[str, Tensor]:
        """Everybody's logits (B, C) of some videos."""
        answers = {LINEAR: linear.logits(x_BD)}
        if marks.ndim == 1:
            most = max((*self._spec.neighbours, *self._spec.recall), default=0)
            cosines_BK, rows_BK = nearest(x_BD, self._x_ND, train, most)
            labels_BK = self._targets.to(rows_BK.device)[rows_BK]
            for k in self._spec.neighbours:
                answers[f"{k}-NN"] = votes(cosines_BK[:, :k], labels_BK[:, :k], len(self._exam.classes))
            if self._spec.recall:
                self._hits += hits(labels_BK == marks[:, None], self._spec.recall)
        if self._prompted is not None:
            answers[ZERO_SHOT] = x_BD @ self._prompted
        return answers


def _headline(scores: dict[str, Any]) -> float:
    """The one number of several that `Scores` gives."""
    return scores["top1"] if "top1" in scores else scores["mean_average_precision"]
