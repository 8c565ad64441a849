"""The checklists of conformance/: complete, each line held by tests that exist or with a reason why not."""

import pytest
from conformance.checklist import CHECKLIST, GAPS, SIZES
from conformance.demanded import DEMANDED
from conformance.faults import MENDED, WEAK_POINTS
from conformance.requirements import MISSING, REQUIREMENTS
from conformance.table import Line, names_in, vanished

TABLES = {"checklist": CHECKLIST, "gaps": GAPS, "weak points": WEAK_POINTS, "mended": MENDED, "demanded": DEMANDED}


def test_the_checklist_has_every_test_of_the_original() -> None:
    assert list(CHECKLIST) == [str(number) for number in range(1, 85)]
    # As they stand there, file by file.
    assert list(SIZES.values()) == [1, 4, 13, 11, 6, 4, 5, 6, 7, 9, 6, 5, 4, 3]


def test_the_other_lists_are_complete() -> None:
    letters = {"A": 13, "B": 9, "C": 9, "D": 9, "E": 8}
    assert list(WEAK_POINTS) == [f"{letter}{n}" for letter, count in letters.items() for n in range(1, count + 1)]
    assert list(MENDED) == [str(number) for number in range(1, 38)]
    assert len(GAPS) == 22
    assert list(DEMANDED) == [str(number) for number in range(1, 31)]
    assert list(REQUIREMENTS) == [f"R{number}" for number in range(1, 29)]


@pytest.mark.parametrize("table", [*TABLES, "requirements"])
def test_every_test_that_holds_a_line_exists(table: str) -> None:
    assert vanished({**TABLES, "requirements": REQUIREMENTS}[table]) == {}


@pytest.mark.parametrize("table", TABLES)
def test_every_line_has_tests_or_a_reason(table: str) -> None:
    assert [number for number, line in TABLES[table].items() if not (line.tests or line.why)] == []


def test_every_requirement_has_tests_or_is_missing() -> None:
    assert MISSING.keys() <= REQUIREMENTS.keys()
    assert {number for number, line in REQUIREMENTS.items() if not line.tests} <= MISSING.keys()


def test_a_test_that_vanished_is_found() -> None:
    lines = {
        "here": Line(
            "here", ("test_conformance::test_a_test_that_vanished_is_found", "test_cli::test_no_connection_string")
        ),
        "gone": Line("gone", ("test_conformance::test_gone", "test_nowhere::test_it")),
        "none": Line("none", ()),
    }
    assert vanished(lines) == {"gone": ["test_conformance::test_gone", "test_nowhere::test_it"]}
    assert "names_in" not in names_in("conformance/table")
