"""How good samples are: samplers side by side, distances, figures, the report.

A sampler is seen only as a callable from noise and condition to samples, so that the teacher and
the student are measured by the same code. What measures or shows a measurement may enter.

`samplers` makes samples, `reference` is what they are compared with, in the spaces of `features`
and by the distance of `frechet`; `evaluate` measures, `trajectories` looks at whole trajectories;
`validity` says whether there were enough samples. `metrics` is the record of it, which `table`
prints and `report` draws with `figures` and the page of `template`.
"""
