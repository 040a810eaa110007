"""Receipts as arrays: whose candidates differ from row to row, and whose contradictions are named."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from flowray.core.model import Estimate
from flowray.routing import decisions, receipts
from flowray.routing.decisions import Decisions
from flowray.routing.tables import SchemaError

from .logs import decided, outcome, routed

THREE = {
    "estimates": (Estimate("tiny", 0.2), Estimate("small", 0.5), Estimate("huge", 1.0)),
    "values": (0.2, 0.5, 1.0),
    "propensities": (0.1, 0.3, 0.6),
}


def test_candidates_have_columns_and_rows_the_order_of_time():
    found = decided([outcome(2, choices=(routed("huge", **THREE),)), outcome(1, quality=0.5)])
    assert found.candidates == ("huge", "large", "small", "tiny")
    assert found.task_ids == ("t-000001", "t-000002") and list(found.at) == [1.25, 2.25]
    assert [found.candidates[column] for column in found.chosen] == ["small", "huge"]
    assert found.offered.tolist() == [[False, True, True, False], [True, False, True, True]]
    assert found.propensities.tolist() == [[0, 0.75, 0.25, 0], [0.6, 0, 0.3, 0.1]]
    np.testing.assert_allclose(found.estimates.success[0], [np.nan, 0.9, 0.6, np.nan], rtol=1e-6)
    assert list(found.rewards) == [0.5, 1.0] and list(found.graded) == [False, False, True, False]


def test_what_is_expected_is_the_quality_of_those_who_report_one():
    """`large` has an estimated quality of 0.8 and success of 0.9, `small` no estimated quality."""
    by_large = [outcome(1, choices=(routed("large"),), quality=0.7), outcome(2, quality=0.7)]
    np.testing.assert_allclose(decided(by_large).expected()[0], [0.8, 0.6], rtol=1e-6)
    silent = [outcome(1, choices=(routed("large"),))]
    np.testing.assert_allclose(decided(silent).expected()[0], [0.9, 0.6], rtol=1e-6)


def test_attempts_at_one_task_are_one_group():
    found = decided([outcome(7, choices=(routed(), routed()), ends=("attempt_failed",)), outcome(1)])
    assert list(found.groups) == [0, 1, 1] and list(found.attempts) == [1, 1, 2]


def test_what_was_taken_over_was_not_drawn():
    taken = outcome(1, choices=(routed("small", propensities=()),))
    assert decided([taken, outcome(2)]).task_ids == ("t-000002",)
    with pytest.raises(SchemaError, match="missing in all receipts"):
        decided([taken])


def with_lists(name, values):
    table = receipts.tabled([outcome()])
    column = table.column_names.index(name)
    return table.set_column(column, table.schema.field(name), pa.array([values], table.schema.field(name).type))


WRONG = [
    (receipts.tabled([]), "holds no receipts"),
    (with_lists("propensities", [0.75, 0.75]), "'propensities': of task t-000001 do not sum to 1"),
    (with_lists("propensities", [1.0, 0.0]), "or the chosen one has none"),
    (with_lists("propensities", [1.0]), "'propensities': has not one entry for each candidate"),
    (with_lists("estimated_success", [0.5, 1.5]), "'estimated_success': holds 1.5, outside 0 to 1"),
    (with_lists("candidates", ["large", "other"]), "'chosen': is not among the candidates of task t-000001"),
    (with_lists("reward", 7.0), "'reward': holds 7, outside 0 to 1"),
]


@pytest.mark.parametrize(("table", "words"), WRONG, ids=[words for _, words in WRONG])
def test_contradictions_are_named(table, words):
    with pytest.raises(SchemaError, match=words):
        Decisions.of_table(table, "mine.parquet")


def test_too_many_cells_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(decisions, "MAX_CELLS", 3)
    with pytest.raises(SchemaError, match="2 receipts x 2 candidates are too many"):
        decided([outcome(1), outcome(2)])
