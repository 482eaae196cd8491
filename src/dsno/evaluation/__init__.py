"""How good samples are: samplers side by side, distances, figures, the report.

A sampler is seen only as a callable from noise and condition to samples, so that the teacher and
the student are measured by the same code. What measures or shows a measurement may enter.

`samplers` makes samples, `reference` is what they are compared with, in the spaces of `features`
(kept by `feature_cache`), or `statistics` of others. The metrics are pure functions of features:
`frechet`, `kernel` (KID), `manifold` (precision and recall), `class_score` (inception score), each
with its error as an `estimate` where it has one; `measures` takes them together. `evaluate`
measures, in batches that all processes share (`batchwise`, `measured`), `equivalence` says how many
evaluations a student is worth, `trajectories` looks at whole trajectories, `validity` says whether
there were enough samples. `metrics` is the record of it, which `table` prints, `wording` says in
sentences and `report` draws, with `arrays` of samples, `figures` and the page of `template`.
"""
