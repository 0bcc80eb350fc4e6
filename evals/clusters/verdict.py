"""The verdict in words: which models share a basin, whether clusters generalise alike, and what to average."""

from __future__ import annotations

from collections.abc import Sequence

from evals.clusters.basins import Basin
from evals.clusters.findings import Analysis
from evals.clusters.stability import STABLE
from evals.clusters.strategies import Membership
from evals.clusters.subsets import RankedSubset
from merge.errors import some

SIGNIFICANT = 0.05
NAMES_SHOWN = 8
NOTHING = 1e-6  # what float32 leaves of a 0
# A rank correlation of predicted and measured losses, from which a ranking is worth following.
GOOD_RANKING = 0.7


def sentences(analysis: Analysis) -> tuple[str, ...]:
    """Return the verdict, the most important sentence first."""
    return (
        *_basin_sentences(analysis),
        *_certainty(analysis),
        *_strategy_sentences(analysis),
        *_averages(analysis),
        *_verification(analysis),
    )


def number(value: float) -> str:
    """Return a number as the verdict writes it: two decimals, three under .1, no zero before the point."""
    digits = 2 if abs(value) >= 0.0995 else 3
    text = f"{value:.{digits}f}"
    if not float(text):
        return "0" if abs(value) < NOTHING else "<.001"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def with_error(value: float, error: float | None) -> str:
    """Return a number and its standard error."""
    return number(value) if error is None else f"{number(value)} ± {number(error)}"


def p_value(p: float) -> str:
    """Return `p < .001` or `p = .012`."""
    return "p < .001" if p < 0.001 else f"p = {f'{p:.3f}'.removeprefix('0')}"


def _names(analysis: Analysis, models: Sequence[int], separator: str = ", ") -> str:
    return some([analysis.models[k] for k in models], NAMES_SHOWN, separator)


def _basin_sentences(analysis: Analysis) -> list[str]:
    """Return a sentence for each cluster, in the order of size."""
    lines = []
    for basin in analysis.basins:
        subject = _subject(analysis, basin)
        difference = _difference(analysis, basin.cluster)
        lines.append(f"{subject} {_claim(analysis, basin)}{difference}.")
    if len(analysis.basins) == 1 and analysis.basins[0].shared is False:
        lines += _groups(analysis)
    return lines


def _subject(analysis: Analysis, basin: Basin) -> str:
    count, several = len(basin.models), len(analysis.clusters) > 1
    names = _names(analysis, basin.models)
    if count == 1:
        return f"{names} is by itself"
    if several:
        return f"These {count} ({names})"
    return "The two models" if count == 2 else f"All {count} models" if basin.shared else f"The {count} models"


def _claim(analysis: Analysis, basin: Basin) -> str:
    """Return what is known of a cluster: that it is a basin, that it is none, or that the rows are too few to tell."""
    summary, tolerance = analysis.settings.barrier_summary, number(float(analysis.settings.tolerance or 0))
    outside = "" if basin.outside is None else f"least {summary} to another model {number(basin.outside)}"
    if basin.barrier is None:
        return f"({outside or 'no line inside was measured'})"
    largest = f"largest {summary} {with_error(basin.barrier, basin.error)}"
    form = "share a basin" if basin.cluster == 0 else "form another"
    far = f"; {outside}" if outside and basin.cluster > 0 else ""
    if basin.shared:
        return f"{form} ({largest}{far})"
    if basin.shared is False:
        near = "are nearest to one another, but " if outside else ""
        all_of = "all " if len(basin.models) > 2 else ""
        return f"{near}do not {all_of}share a basin ({largest}, over {tolerance}{far})"
    between = "" if basin.low is None else f", between {number(basin.low)} and {number(float(basin.high or 0))}"
    return (
        f"may share a basin: {_rows(analysis)} too few to tell ({largest}{between}; a basin has at most "
        f"{tolerance}{far})"
    )


def _rows(analysis: Analysis) -> str:
    return "1 row is" if analysis.rows == 1 else f"{analysis.rows} rows are"


def _groups(analysis: Analysis) -> list[str]:
    """Return what there is within the tolerance, where all models form one cluster that is no basin."""
    tolerance = number(float(analysis.settings.tolerance or 0))
    near = [group for group in analysis.groups if len(group) > 1]
    if not analysis.groups:
        return []
    if not near:
        return [
            f"No two of them have a {analysis.settings.barrier_summary} within {tolerance}: each is a basin of its own."
        ]
    listed = "; ".join("{" + _names(analysis, group) + "}" for group in near)
    return [f"Within {tolerance} of one another are only {listed}."]


def _difference(analysis: Analysis, cluster: int) -> str:
    """Return the diagnostic that tells a cluster from the others best, where one does."""
    sentences = [
        (each.adjusted, row.diagnostic, each)
        for row in analysis.strategies
        for each in row.memberships
        if each.cluster == cluster and each.adjusted is not None and each.adjusted < SIGNIFICANT
    ]
    if not sentences:
        return ""
    p, name, most = min(sentences, key=lambda entry: (entry[0], -abs(entry[2].inside - entry[2].outside)))
    verb = "scores" if len(analysis.clusters[cluster]) == 1 else "which scores"
    return f", {verb} {number(most.inside)} against {number(most.outside)} on {name} ({p_value(float(p))})"


def _certainty(analysis: Analysis) -> list[str]:
    """Return how far the number of clusters and their members are certain."""
    lines = []
    one_basin = len(analysis.basins) == 1 and analysis.basins[0].shared
    rules = analysis.number.by_silhouette, analysis.number.by_gap
    if analysis.number.rule == "auto" and analysis.number.chosen != rules[0] and not one_basin:
        lines.append(
            f"The number of clusters is uncertain: {rules[0]} by the silhouette, {rules[1]} by the gap "
            f"statistic, and so high a silhouette comes by chance with p = {analysis.number.chance:.2g}."
        )
    loose = [k for k, index in enumerate(analysis.stability.jaccard) if len(analysis.clusters) > 1 and index < STABLE]
    for k in loose:
        lines.append(
            f"{_rows(analysis)} too few to tell who belongs with {_names(analysis, analysis.clusters[k])}: resampled "
            f"rows give that cluster back with a Jaccard index of {number(analysis.stability.jaccard[k])} (stable: {STABLE})."
        )
    return lines


def _strategy_sentences(analysis: Analysis) -> list[str]:
    """Return what the diagnostics say beyond the first difference of each cluster."""
    tests = [(row.diagnostic, each) for row in analysis.strategies for each in row.memberships]
    known = [(name, each) for name, each in tests if each.adjusted is not None]
    if not known or any(float(each.adjusted or 0) < SIGNIFICANT for _, each in known):
        return []
    least = _least_p(known[0][1])
    if least > SIGNIFICANT:
        inside, outside = known[0][1].models
        return [
            f"Too few models to tell whether the clusters generalise alike: with {inside} and {outside} no {p_value(least)[:1]} "
            f"is under {number(least)}."
        ]
    name, best = min(known, key=lambda entry: float(entry[1].adjusted or 0))
    return [
        f"No diagnostic tells the clusters apart; the nearest is {name}, {number(best.inside)} against {number(best.outside)} "
        f"({p_value(float(best.adjusted or 0))})."
    ]


def _least_p(each: Membership) -> float:
    """Return the smallest p-value that clusters of this size can have: where they are split perfectly, one way of all."""
    from math import comb

    return min(1.0, 2 / comb(sum(each.models), each.models[0]))


def _averages(analysis: Analysis) -> list[str]:
    """Return which average is predicted to be best, against the best model and against the average of all."""
    ranking = analysis.ranking
    if not ranking.subsets:
        return []
    best, alone = ranking.subsets[0], ranking.best_model
    lone = f"{_names(analysis, alone.models)} alone ({with_error(alone.loss, alone.standard_error)})"
    if best.gain <= 0:
        return [f"No average is predicted to beat {lone}; the best, {_average(analysis, best)}."]
    sure = best.gain_error is not None and best.gain > 2 * best.gain_error
    doubt = "" if sure else ", which is no more than chance"
    text = f"Best to average: {_average(analysis, best)}, {with_error(best.gain, best.gain_error)} below {lone}{doubt}."
    everything = ranking.everything
    if everything is not None and everything.models != best.models:
        text += f" All {len(analysis.models)} averaged: {with_error(everything.loss, everything.standard_error)}."
    if best.departure > abs(best.gain):
        text += (
            f" The curves between these models are up to {number(best.departure)} away from parabolas, which is more than that "
            "gain: measure before you trust it."
        )
    return [text]


def _average(analysis: Analysis, subset: RankedSubset) -> str:
    return f"{_names(analysis, subset.models, ' + ')}, predicted loss {with_error(subset.loss, subset.standard_error)}"


def _verification(analysis: Analysis) -> list[str]:
    """Return how well the predictions held."""
    record = analysis.verification
    if record is None:
        return []
    best = min(record.subsets, key=lambda each: each.measured)
    order = "" if record.rank_correlation is None else f", rank correlation {number(record.rank_correlation)}"
    doubt = ""
    if record.rank_correlation is not None and record.rank_correlation < GOOD_RANKING:
        doubt = " The ranking by prediction is not to be relied on here."
    return [
        f"{len(record.subsets)} averages were measured: predictions are off by {number(record.mean_error)} on average, "
        f"{number(abs(record.largest_error))} at most{order}. The best measured is "
        f"{_names(analysis, best.models, ' + ')}, {with_error(best.measured, best.measured_error)}.{doubt}"
    ]
