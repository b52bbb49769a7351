"""The table of what learns, cell by cell: a gain is against the default of the same seed."""

from experiments import trained_parts

from .conftest import estimates


def result(value, relation):
    kinds = {"base": {"relation": 0.1, "count": 0.2}, "trained": {"relation": relation, "count": 1}}
    return {"base": estimates(0.2), "trained": estimates(value), "by_kind": kinds}


def test_gains_are_those_of_pairs(write):
    steps = [{"time/step": 30}] * 4
    for seed, base, value in ((0, 0.5, 0.4), (1, 0.3, 0.5), (2, 0.9, None)):
        write(f"parts-smolvlm-default-{seed}", eval=result(base, 0.6), metrics=steps)
        if value:
            write(f"parts-smolvlm-connector-full-{seed}", eval=result(value, 0.7), metrics=steps)
    head, _, base, default, connector = trained_parts.table("smolvlm", [0, 1, 2]).splitlines()
    assert "| relations told | counts told | hallucinated, against default |" in head
    assert base.endswith("| 0.100 | 0.200 |  |  |  |")
    assert default.startswith("| default (3) | 0.567 [0.200, 1.100] |")
    assert default.endswith("| 0.600 | 1.000 |  |  | 2.0 |")
    assert connector.startswith("| connector full (2) | 0.450")
    gain = "+0.050 [-0.100, +0.200]"
    assert connector.endswith(f"| 0.700 | 1.000 | {gain} | {gain} | 2.0 |")
