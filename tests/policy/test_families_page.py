"""docs/families.md says of each family what its entry says and what the tests go through."""

import re

from vizer_rl.policy.families import FAMILIES

from .. import tiny_families
from ..conftest import REPO
from . import test_families

PAGE = (REPO / "docs" / "families.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"\| `\w+` ", line)
]
HEAD = ["train", "shared prefix", "alignment reward", "claim_check"]


def test_the_table_has_a_row_for_each_family_with_what_its_entry_says():
    assert [row[0].strip("`") for row in ROWS] == list(FAMILIES)
    assert f"| {' | '.join(HEAD)} |" in PAGE
    for (_, checkpoints, types, *tested), entry in zip(ROWS, FAMILIES.values(), strict=True):
        assert checkpoints
        assert tuple(re.findall(r"`(\w+)`", types)) == entry.model_types
        shared = "tested" if entry.shared_prefix else "no: a row per caption"
        assert tested == ["tested", shared, "tested", "tested"]


def test_what_it_calls_tested_is():
    assert {name.removesuffix("_base") for name in tiny_families.BUILDERS} == set(FAMILIES)
    whole = [
        test_families.test_captions_two_steps_saved_and_loaded,  # with the reward alignment
        test_families.test_packed_rows_fit_where_the_entry_says_so_and_nowhere_else,
        test_families.test_claims_are_put_to_the_policy_and_images_have_features,
    ]
    for test in whole:
        marks = [mark for mark in test.pytestmark if mark.name == "parametrize"]
        cases = {str(getattr(case, "values", [case])[0]) for mark in marks for case in mark.args[1]}
        assert {case.removesuffix("_base") for case in cases} == set(FAMILIES)


def test_its_run_file_and_the_numbers_it_quotes_of_it_are_there():
    text = (REPO / "experiments" / "smolvlm-256m.yaml").read_text()
    for line in ("per_device_train_batch_size: 8", "max_completion_length: 64", "5.0e-5"):
        assert line in text
    assert "`experiments/smolvlm-256m.yaml`" in PAGE
