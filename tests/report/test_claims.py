"""The table of claims: every row with its verdict, what it rests on, and why it has none."""

from frepro import papers, report
from frepro.experiment import Outcome, claims


def outcome(differences, text="A outperforms B.", confounded=None, unit="points", **more) -> Outcome:
    claim = papers.Claim("a", "b", text, confounded=confounded)
    found = claims.paired(differences, [0.0] * len(differences))
    return Outcome(claim, ("A", "B"), unit, 0.5, *found, len(differences), **more)


def test_a_row_has_the_test_and_its_power():
    found = claims.adjusted([outcome([4.0, 5.0, 6.0], error=0.6), outcome([1.0, -1.0, 2.0])])
    view = report.claims(found)
    cells = dict(zip((lower for _, lower in view.headings), view.rows[0], strict=True))
    assert cells["verdict"] == "agrees"
    assert (cells["paper"], cells["here"], cells["n"]) == ("+0.5 points", "+5.00 points", "3")
    assert cells["95 % interval"] == "+2.52 to +7.48 points"  # t(0.975, 2) = 4.303
    assert cells["and over test images"] == "+2.42 to +7.58 points"
    assert cells["p (Holm)"] == "0.026"  # twice 0.0131
    assert float(cells["least detectable"].split()[0]) > 2.48  # at half the power, about the interval's reach
    assert 0.05 < float(cells["for the paper's difference"]) < 0.2
    assert len({len(row) for row in view.rows} | {len(view.headings)}) == 1


def test_marks_say_why_a_verdict_is_none_or_small():
    view = report.claims(
        [
            outcome([0.4, 0.5, 0.6], margin=1.0),
            outcome([0.1, -0.1, 0.2, -0.2], margin=1.0),
            outcome([1.0, 2.0], untrained=("B, seed 1",)),
            Outcome(papers.Claim("a", "b", ""), ("A", "B"), "points", None, reason="not among the models of this run"),
        ]
    )
    assert [row[1] for row in view.rows] == ["agrees*", "equivalent*", "did not train**", "not run***"]
    assert view.notes == [
        "within the margin of ±1 points",
        "did not train: B, seed 1",
        "not among the models of this run",
    ]
    assert view.rows[2][8:] == ["", "", ""]  # nothing was tested


def test_a_confounded_comparison_says_so():
    view = report.claims([outcome([1.0, 2.0], confounded="another architecture")])
    assert view.rows[0][0] == "A outperforms B. (Confounded: another architecture.)"


def test_throughput_on_another_machine_has_no_power_for_the_papers_difference():
    view = report.claims([outcome([10.0, 11.0, 12.0], unit="img/s")])
    assert view.rows[0][-1] == ""
    assert view.rows[0][-2].endswith(" img/s")
    assert ("test", "p") in view.headings  # a single claim is not adjusted
