"""The spaces samples are compared in, each one row of a table.

| space         | what it is                                 | needs            |
|---------------|--------------------------------------------|------------------|
| `pixels`      | the values themselves: exact, for tiny images |                  |
| `thumbnail`   | images averaged down to 8x8                |                  |
| `classifier`  | a small network trained here               | labels           |
| `imagenet`    | SqueezeNet 1.1, from a package on PyPI     | `dsno[imagenet]` |
| `inception`   | NVIDIA's Inception-v3: the distance is FID | one file         |
| `torchscript` | any detector exported with TorchScript     | its file         |

A space is a callable, with the record of all that its numbers depend on; `table` makes one by name.
"""

from dsno.evaluation.features.classifier import Classifier, TrainedClassifier, train_classifier
from dsno.evaluation.features.plain import MAX_PIXELS, PLAIN_SPACES, pixels, thumbnail
from dsno.evaluation.features.space import Features, Outputs, Space, distance_name, singular
from dsno.evaluation.features.table import Wanted, build_space, usual_spaces

__all__ = [
    "MAX_PIXELS",
    "PLAIN_SPACES",
    "Classifier",
    "Features",
    "Outputs",
    "Space",
    "TrainedClassifier",
    "Wanted",
    "build_space",
    "distance_name",
    "pixels",
    "singular",
    "thumbnail",
    "train_classifier",
    "usual_spaces",
]
