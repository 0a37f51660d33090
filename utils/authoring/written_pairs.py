"""Contrast pairs that the judge model wrote, in both forms: as A/B questions, split like others, and as texts."""

from collections.abc import Mapping, Sequence
from typing import Any

from utils.authoring.request import AuthoringRequest
from utils.data.duplicates import find_duplicates
from utils.data.processing import write_together
from utils.data.records import ContrastPair, TextPair
from utils.data.splitting import pair_record, split_pairs, whole_text
from utils.files.provenance import record_provenance


def save_written_pairs(request: AuthoringRequest, pairs: Sequence[TextPair], run: Mapping[str, Any]) -> None:
    """Write both raw sets, and the generate and test set of A/B form.

    The sets of text form are those of the model's own answers; to take the written ones instead, run
    `process_raw_datasets.py --overwrite`.
    """
    paths, behavior = request.paths, request.behavior
    lettered = [as_contrast_pair(pair, place) for place, pair in enumerate(pairs)]
    duplicates = find_duplicates([whole_text(pair) for pair in lettered])
    source = paths.raw_dataset(behavior)
    splits = split_pairs(lettered, duplicates, request.seed, source, len(lettered) // 3, None)
    contents = {
        source: [pair_record(pair) for pair in lettered],
        paths.raw_text_dataset(behavior): [pair_record(pair) for pair in pairs],
        paths.generate_dataset(behavior): [pair_record(pair) for pair in splits.generate],
        paths.test_dataset(behavior, "ab"): [pair_record(pair) for pair in splits.test],
    }
    for path in contents:
        record_provenance(path.parent, [path.name], dict(run))
    write_together(contents)


def as_contrast_pair(pair: TextPair, place: int) -> ContrastPair:
    """The pair as an A/B question; the matching answers stand at (A) and (B) in turn."""
    texts, letters = ((pair.matching, pair.other), "AB") if place % 2 == 0 else ((pair.other, pair.matching), "BA")
    return ContrastPair(f"{pair.question}\n\nChoices:\n (A) {texts[0]}\n (B) {texts[1]}", letters[0], letters[1])
