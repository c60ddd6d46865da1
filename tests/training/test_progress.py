"""What is done and how long the rest will take."""

from frepro.training.progress import Progress, minutes


def test_the_rest_takes_what_it_took_before_at_the_pace_of_today():
    expected = {("run", number): 10.0 for number in range(6)} | {("notebook", "a"): 30.0}
    said = []
    with Progress(expected, {"run": 2}, said.append) as progress:
        assert progress.left() == "about 60 s left"  # 6 runs of 10 s, two at a time, and one notebook
        progress.done(("run", 0), 20.0, "run 0")  # twice as slow
        progress.done(("run", 1), 20.0, "run 1")
        assert progress.left() == "about 70 s left"  # 4 runs of 20 s, two at a time, and the notebook
    assert said[0] == "[1/7] run 0; about 80 s left"


def test_what_nobody_knows_is_taken_from_its_like():
    expected = {("run", 0): None, ("run", 1): None, ("run", 2): 8.0, ("notebook", "a"): None}
    with Progress(expected, {}, lambda line: None) as progress:
        assert progress.left() == "more than 24 s left"
        progress.done(("notebook", "a"), 5.0, "a")
        assert progress.left() == "about 24 s left"
        progress.done(("run", 0), 4.0, "0")
        assert progress.left() == "about 14 s left"  # 8 s, and the mean of 4 and 8
        progress.drop(("run", 1))
        assert progress.left() == "about 8 s left"
        progress.done(("run", 2), 8.0, "2")
        assert progress.left() == ""
    with Progress({("run", 0): None}, {}, lambda line: None) as progress:
        assert progress.left() == ""


def test_seconds_as_people_say_them():
    assert [minutes(s) for s in (3.2, 89, 100, 5000, 9000)] == ["3 s", "89 s", "2 min", "83 min", "2.5 h"]
