"""The weights that authors published, next to the rows of their papers."""

from collections.abc import Collection

from frepro import papers
from frepro.recipes import Classification
from frepro.report.view import View, cell

TOP1 = Classification.main_metric().name


def weights(models: Collection[str]) -> View:
    """Return the rows of the papers' tables of classifiers, with the weights that were published for each.

    Args:
        models: Names of frepro's models to show. Models of timm are shown if their rows name weights.
    """
    from frepro.models import published  # imports torch, which takes seconds

    rows: list[list[str]] = []
    shown = set()
    for name in papers.names():
        for number, table in sorted(papers.load(name).tables.items()):
            column = table.column(TOP1)
            if table.is_of_backbones or column is None:
                continue
            for row in table.rows:
                if row.model is None or (row.model not in models and row.weights is None):
                    continue
                label = str(table.value(row, "label")) if table.column("label") else row.model
                line = [f"{name} table {number}", label, row.model, cell(table.value(row, TOP1), column.decimals)]
                if row.weights is not None:
                    of_timm = published.of_timm(row.model, row.weights)
                    rows.append([*line, of_timm.model, of_timm.said])
                    continue
                for found in published.of_model(row.model):
                    rows.append([*line, f"{found.model}.{published.TAG}" if found.url else "none", found.said])
                    shown.add(found.model)
    for model, url in published.URLS.items():
        if model in models and model not in shown:
            rows.append(["no table", "", model, "", f"{model}.{published.TAG}", url])
    headings = ["Table", "Row", "Model", "Top-1, paper", "Weights", "Address"]
    return View([("", heading) for heading in headings], rows, [])
