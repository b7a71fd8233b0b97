"""What to look at first: each thing that surely went wrong, in which stage and slice, largest loss first."""

from dataclasses import dataclass

from evaluation.comparison import p_text
from evaluation.ranking_study import Comparison, StageStudy
from evaluation.slices import SliceValue

#: A choosing stage that loses less than this share of what it was given is not worth a line.
SMALL_LOSS = 0.02
_OFFERED = {
    "index": "exact search retrieved",
    "filter": "were candidates",
    "feed": "the ranker put first",
    "campaign": "the feed put first",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, the stage and slice it blames (empty = everything), and the loss in the metric."""

    stage: str
    slice: str
    loss: float
    text: str


def stage_findings(study: StageStudy) -> list[Finding]:
    """Stages that lose a lot of what they were given, and slices where a stage loses more than elsewhere."""
    found = []
    level = 1.0
    for step, loss in study.steps.items():
        given, level = level, level + loss.value
        lost = -loss.value
        if step in ("index", "filter", "feed", "campaign") and loss.high < 0 and lost > SMALL_LOSS * given:
            text = f"{step} loses {lost:.4f} of {study.metric}, {lost / given:.0%} of what reached it"
            kept, offered = study.kept.get(step, (0, 0))
            if offered:
                text += f"; it keeps {kept / offered:.0%} of {offered:,} right videos that {_OFFERED[step]}"
            found.append(Finding(step, "", lost, text))
        if step != "tower":
            found += [_sliced(step, value) for value in study.worst[step]]
    return sorted(found, key=lambda finding: -finding.loss)


def comparison_findings(comparison: Comparison) -> list[Finding]:
    """Slices in which a change did surely worse than overall and worse than before."""
    found = []
    for value in comparison.worst:
        if value.estimate.high < 0:
            text = (
                f"{comparison.new} is worse than {comparison.old} where {value.name}: {value.metric} "
                f"{value.estimate.value:+.4f} there, {value.elsewhere:+.4f} elsewhere "
                f"({value.estimate.n:,} users, p {p_text(value.p)})"
            )
            found.append(Finding(comparison.new, value.name, -value.weight, text))
    for column in comparison.simpson:
        text = (
            f"Simpson's paradox: {comparison.new} against {comparison.old} moves one way overall and the "
            f"other way in every slice of {column}; compare within the slices"
        )
        found.append(Finding(comparison.new, column, 0.0, text))
    return found


def _sliced(step: str, value: SliceValue) -> Finding:
    text = (
        f"{step} loses {-value.estimate.value:.0%} of the {value.metric} that reached it where {value.name}, "
        f"{-value.elsewhere:.0%} elsewhere ({value.estimate.n:,} users, p {p_text(value.p)})"
    )
    return Finding(step, value.name, -value.weight, text)
