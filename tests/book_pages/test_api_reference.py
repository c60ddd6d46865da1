"""Reference pages: which modules they show, and plain docstrings as reStructuredText."""

from frepro.book_pages import api_reference


def test_every_module_of_users_has_a_page(tmp_path):
    api_reference.lay_out(tmp_path)
    text = {path.stem: path.read_text() for path in tmp_path.glob("*.md")}
    assert ".. automodule:: frepro.models.dfformer\n" in text["models"]
    assert ".. automodule:: frepro.ops.spectral\n" in text["ops"]
    assert ".. automodule:: frepro.papers\n" in text["papers"]
    assert ".. automodule:: frepro.experiment\n" in text["experiment"]
    assert ".. automodule:: frepro.errors\n" in text["core"]
    everything = "".join(text.values())
    assert "frepro.cli" not in everything
    assert "frepro.ops.triton" not in everything
    assert everything.count(".. automodule::") == len(api_reference.modules())


def test_marks_that_are_not_meant_are_made_plain():
    assert api_reference.as_rest(["a X + b |F(X)|, K * x * y, W_, *shape bias* and ``a * b``"]) == [
        r"a X + b \|F(X)\|, K \* x \* y, W\_, *shape bias* and ``a * b``",
        "",
    ]


def test_fields_stay_fields():
    assert api_reference.as_rest([":param \\*\\*kwargs: |x|", ""]) == [":param \\*\\*kwargs: \\|x\\|", "", ""]


def test_a_list_is_set_apart():
    assert api_reference.as_rest(["We differ:", "- here and", "  there", "- elsewhere", "in short."]) == [
        "We differ:",
        "",
        "- here and",
        "  there",
        "- elsewhere",
        "",
        "in short.",
        "",
    ]


def test_what_is_indented_or_in_columns_keeps_its_layout():
    assert api_reference.as_rest(["By", "", "    h_t = A * h", "", "sizes.csv     parameters"]) == [
        "By",
        "",
        ".. code-block:: text",
        "",
        "        h_t = A * h",
        "",
        ".. code-block:: text",
        "",
        "    sizes.csv     parameters",
        "",
    ]
