"""``frepro bench``: the speed of operations and models, compared with their plain references and with their peers.

Modules::

    results   measurements as rows of CSV, and the ratios between rows; does not need torch
    operations, models, parts, resolution   the four sections: what each of them times
    beside    third-party code, timed in the same rounds
    run       the complete benchmark, one process per section
    scaling   verdicts on DFFormer's Figures 5 and 6
    settings  the extent of the benchmark

Tables are in ``report.benchmark``, figures in ``figures.speed``.
"""
