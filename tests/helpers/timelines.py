"""Random valid timelines of a ResNet."""

from hypothesis import strategies as st

from seal_fast.methods.operators import (
    Align,
    Average,
    Loss,
    Mask,
    Mix,
    Orthogonalise,
    Rescale,
    Scope,
    Sharpness,
    Source,
)
from seal_fast.methods.schedule import Curve, Phase, Rule, Timeline

shares = st.floats(0, 1)
MODULES = ("layer1", "layer2", "layer3", "layer4", "fc")


@st.composite
def scopes(draw, parts=("weight", "bias", "norm", "statistics")):
    """Not empty in any ResNet: from a layer on, weights among the parts."""
    others = draw(st.sets(st.sampled_from(parts[1:])))
    return Scope(draw(st.sampled_from(("", *MODULES))), "", ("weight", *sorted(others)))


def masks():
    kinds = st.sampled_from(("wels", "kels", "rows", "magnitude", "snip", "nonzero"))
    across = st.sampled_from(("tensor", "scope", "network"))
    return st.builds(Mask, kinds, shares, st.booleans(), across, st.integers(0, 9), st.just(0.5))


def operators(kinds):
    sources = st.builds(
        Source, st.sampled_from(kinds), st.sampled_from(("kaiming-uniform", "he-normal", "unit-normal"))
    )
    weights, numbers = scopes(("weight", "bias", "norm")), st.floats(-0.5, 1)
    return st.one_of(
        st.builds(Mix, scopes(), sources, numbers, numbers),
        st.builds(Mix, scopes(("weight", "bias")), sources, numbers, numbers, masks()),
        st.builds(Orthogonalise, scopes(("weight",) * 2), st.integers(1, 3)),
        st.builds(Align, weights, shares, shares, st.integers(4, 9)),
        st.builds(Rescale, weights),
    )


def rule():
    multipliers, curve = st.floats(0, 1), st.just(Curve("constant"))
    return st.builds(
        Rule, st.sampled_from((1, -1)), multipliers, st.floats(0, 1e-3), st.none() | multipliers, st.none() | curve
    )


@st.composite
def timelines(draw, lr=0.01, epochs=3):
    """Up to 3 generations of up to 2 phases each."""
    groups = draw(st.sampled_from((("early", "late"), ("a", "b", "c"))))
    each_step = draw(st.none() | st.builds(Average, st.floats(0, 0.99)))
    generations, snapshot, averaged = [], False, each_step is not None
    for _ in range(draw(st.integers(1, 3))):
        phases = []
        for _ in range(draw(st.integers(1, 2))):
            taken = draw(st.booleans())
            snapshot |= taken
            kinds = ["zero", "draw", "initial", *["snapshot"] * snapshot, *["average"] * averaged]
            average = each_step or draw(st.none() | st.builds(Average, every=st.just("epoch"), anew=st.booleans()))
            losses = st.builds(
                Loss,
                st.none() | st.floats(0, 0.5),
                shares,
                shares,
                st.floats(0, 0.5),
                shares if snapshot else st.just(0.0),
            )
            by_group = [("all", draw(rule()))] + [(group, draw(rule())) for group in groups if draw(st.booleans())]
            phases.append(
                Phase(
                    draw(st.sampled_from(("ascent", "descent", "other"))),
                    draw(st.integers(1, epochs)),
                    tuple(by_group),
                    tuple(draw(st.lists(operators(kinds), max_size=2))),
                    draw(st.none() | scopes()),
                    taken,
                    draw(st.none() | scopes(("weight",) * 2)),
                    average,
                    draw(st.none() | losses),
                    draw(st.none() | st.builds(Sharpness, st.floats(0, 0.1), st.booleans())),
                )
            )
            averaged |= average is not None
        generations.append(tuple(phases))
    curve = draw(st.sampled_from((Curve(), Curve("constant", 1), Curve("step", steps=(1,)))))
    return Timeline("random", tuple(generations), lr, curve, ("layer2", "fc")[: len(groups) - 1], groups)
