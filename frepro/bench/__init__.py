"""``frepro bench``: how fast operations and models are, against their plain references and against their peers.

results   what is measured, as lines of CSV, and the ratios between lines; needs no torch
operations, models, parts, resolution   the four sections: what they time
beside    code of others, timed in the same rounds
run       all of it, a process for each section
report    tables; pictures are in ``figures.speed``
"""
