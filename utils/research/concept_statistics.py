"""Is the geometry of a hierarchy there: orthogonality, projections, simplices, interventions, with their controls.

After Park et al. 2024: a child's vector differs from its parent's by something orthogonal to the parent's,
the children of a parent are the corners of a simplex, and a step from one parent to another moves the logits between
the parents' words and none between their children. The child's words are among the parent's, which alone makes
the first nearly true: so it is also measured with the parent made of its other children.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from utils.research.concept_layout import BoolArray, Layout
from utils.research.concept_space import FloatArray, concept_vector, cosine


@dataclass(frozen=True)
class Gap:
    """What a step of length 1 along one direction does to the logits of words."""

    kind: str
    """The direction: "parent", from one parent to another; "child", between siblings."""
    held_out: bool
    """Whether direction and logits are of different words; else both are of all words, as published."""
    source: str
    target: str
    own: float
    """Change of the mean logit of the target's words minus that of the source's."""
    own_std: float
    """Its standard deviation over pairs of words."""
    other: float
    """Along a parent's direction the change between siblings, along a child's that between parents: mean of the
    absolute values over all of these that the two have."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """The numbers of one table of rows. Arrays are [n_children]."""

    nested: FloatArray
    """cos(l_child - l_parent, l_parent), the parent's words with the child's among them."""
    apart: FloatArray
    """The same with the parent made of its other children's words: a little below 0 where these are few."""
    share: FloatArray
    """l_child.l / |l|^2 with that parent: 1 if the child has the whole of it, 0 if nothing."""
    other_parent: FloatArray
    """The same with other parents in the place of the own one, mean over them."""
    norms: FloatArray
    """|l_child|"""
    members: FloatArray
    """Projection g.l/|l|^2 of held-out words on the vector of the training words, 1 if all is as it should be."""
    outsiders: FloatArray
    """The same of the words of other parents, 0 if so."""
    corners: FloatArray
    """[n_parents]: mean cosine between a parent's children, seen from their mean; -1/(k-1) in a regular simplex."""
    nearest: list[FloatArray]
    """For each parent, over its held-out words: share of the word's forms nearest to their own child's corner."""
    gaps: tuple[Gap, ...]


def measure(x: FloatArray, layout: Layout) -> Geometry:
    """All statistics of rows [n_rows, d] in the order of a layout."""
    whole = Vectors(x, layout, np.ones(len(x), dtype=bool))
    training = Vectors(x, layout, layout.is_training)
    n = len(layout.children)
    own = [whole.parents[layout.parent_of[child]] for child in range(n)]
    rest = np.stack([whole.without(child) for child in range(n)])
    members, outsiders = zip(*(_projections(x, layout, training, child) for child in range(n)), strict=True)
    return Geometry(
        nested=np.array([_excess(whole.children[child], own[child]) for child in range(n)]),
        apart=np.array([_excess(whole.children[child], rest[child]) for child in range(n)]),
        share=np.einsum("cd,cd->c", whole.children, rest) / np.square(rest).sum(axis=1),
        other_parent=np.array([_from_others(whole, child) for child in range(n)]),
        norms=np.linalg.norm(whole.children, axis=1),
        members=np.array(members),
        outsiders=np.array(outsiders),
        corners=np.array([_corner_cosine(whole.children[layout.siblings(p)]) for p in range(len(layout.parents))]),
        nearest=[_nearest_corner(x, layout, training, parent) for parent in range(len(layout.parents))],
        gaps=(
            *interventions(x, layout, training, ~layout.is_training),
            *interventions(x, layout, whole, np.ones(len(x), dtype=bool)),
        ),
    )


class Vectors:
    """The concept vectors of a layout's categories, of some of its rows."""

    def __init__(self, x: FloatArray, layout: Layout, used: BoolArray) -> None:
        self._x, self._layout, self._used = x, layout, used
        self.children = np.stack([self._of(layout.of_child(child)) for child in range(len(layout.children))])
        self.parents = np.stack([self._of(layout.of_parent(parent)) for parent in range(len(layout.parents))])

    def without(self, child: int) -> FloatArray:
        """The vector of a child's parent without the child's words."""
        return self._of(self._layout.of_parent(int(self._layout.parent_of[child]), without=child))

    @property
    def parent_of(self) -> list[int]:
        return self._layout.parent_of.tolist()

    def _of(self, rows: BoolArray) -> FloatArray:
        return concept_vector(self._x[rows & self._used])


def _excess(child: FloatArray, parent: FloatArray) -> float:
    return cosine(child - parent, parent)


def _from_others(vectors: Vectors, child: int) -> float:
    others = [vector for place, vector in enumerate(vectors.parents) if place != vectors.parent_of[child]]
    return float(np.mean([_excess(vectors.children[child], other) for other in others]))


def random_parents(x: FloatArray, layout: Layout, table: FloatArray, rng: np.random.Generator) -> FloatArray:
    """cos(l_child - l, l) with random rows of a table [n, d] for a parent of the own one's size, [n_children]."""
    found = []
    for child in range(len(layout.children)):
        n = int(layout.of_parent(int(layout.parent_of[child])).sum())
        drawn = concept_vector(table[rng.choice(len(table), n, replace=False)])
        found.append(_excess(concept_vector(x[layout.of_child(child)]), drawn))
    return np.array(found)


def _projections(x: FloatArray, layout: Layout, training: Vectors, child: int) -> tuple[float, float]:
    vector = training.children[child]
    along = x @ vector / (vector @ vector)
    inside = layout.of_child(child) & ~layout.is_training
    outside = layout.parent_of_row != layout.parent_of[child]
    return float(along[inside].mean()), float(along[outside].mean())


# --- simplices -------------------------------------------------------------------------------------


def _corner_cosine(corners: FloatArray) -> float:
    """Mean cosine between any two corners [k, d], seen from their mean."""
    centred = corners - corners.mean(axis=0)
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    k = len(corners)
    return float(((units @ units.T).sum() - k) / (k * (k - 1)))


def _nearest_corner(x: FloatArray, layout: Layout, training: Vectors, parent: int) -> FloatArray:
    """[n_held_out_words]; distances are taken within the plane of the corners."""
    siblings = layout.siblings(parent)
    corners = training.children[siblings]
    basis = np.linalg.svd(corners - corners.mean(axis=0), full_matrices=False)[2][: len(siblings) - 1]  # [k - 1, d]
    held_out = layout.of_parent(parent) & ~layout.is_training
    distances = ((x[held_out] @ basis.T)[:, None] - (corners @ basis.T)[None]) ** 2  # [n, k, k - 1]
    right = np.array(siblings)[distances.sum(axis=2).argmin(axis=1)] == layout.child_of_row[held_out]
    words = layout.word_of_row[held_out]
    return np.array([right[words == word].mean() for word in np.unique(words)])


# --- interventions ---------------------------------------------------------------------------------


def interventions(x: FloatArray, layout: Layout, vectors: Vectors, read: BoolArray) -> Iterator[Gap]:
    """Steps of length 1 between parents and between siblings; what the logits of some rows do.

    A step v in this space changes the logit of a word by g.v (plus the same for all words), whatever the context.

    Args:
        x: [n_rows, d].
        layout: Of the rows.
        vectors: What directions are made of.
        read: [n_rows]: the words whose logits are read.
    """
    held_out = not (read & layout.is_training).any()
    pairs = layout.sibling_pairs()
    for source, target in layout.parent_pairs():
        along = x @ _unit(vectors.parents[target] - vectors.parents[source])
        own = _parent_gap(along, layout, read, source, target)
        inside = [pair for pair in pairs if layout.parent_of[pair[0]] in (source, target)]
        moved = [_child_gap(along, layout, read, *pair)[0] for pair in inside]
        names = layout.parents[source], layout.parents[target]
        yield Gap("parent", held_out, *names, *own, float(np.abs(moved).mean()))
    for source, target in pairs:
        along = x @ _unit(vectors.children[target] - vectors.children[source])
        own = _child_gap(along, layout, read, source, target)
        parent = int(layout.parent_of[source])
        others = [other for other in range(len(layout.parents)) if other != parent]
        moved = [_parent_gap(along, layout, read, other, parent)[0] for other in others]
        names = layout.children[source], layout.children[target]
        yield Gap("child", held_out, *names, *own, float(np.abs(moved).mean()))


def random_gaps(x: FloatArray, layout: Layout, rng: np.random.Generator) -> float:
    """Mean absolute change between two parents' held-out words along random directions, one for each pair."""
    pairs = layout.parent_pairs()
    along = [x @ _unit(np.asarray(rng.standard_normal(x.shape[1]))) for _ in pairs]
    moved = [_parent_gap(one, layout, ~layout.is_training, *pair)[0] for one, pair in zip(along, pairs, strict=True)]
    return float(np.abs(moved).mean())


def _parent_gap(along: FloatArray, layout: Layout, read: BoolArray, source: int, target: int) -> tuple[float, float]:
    return _between(along, layout.of_parent(target) & read, layout.of_parent(source) & read)


def _child_gap(along: FloatArray, layout: Layout, read: BoolArray, source: int, target: int) -> tuple[float, float]:
    return _between(along, layout.of_child(target) & read, layout.of_child(source) & read)


def _between(along: FloatArray, target: BoolArray, source: BoolArray) -> tuple[float, float]:
    """Mean difference, and its standard deviation over all pairs of words."""
    there, here = along[target], along[source]
    return float(there.mean() - here.mean()), float(np.sqrt(there.var() + here.var()))


def _unit(vector: FloatArray) -> FloatArray:
    return np.asarray(vector / np.linalg.norm(vector))
