"""Real data: images from a folder, arrays, a Hugging Face data set or scikit-learn's digits.

One module for each kind of source; all give the same `Dataset`, and `load` says in one line what
was understood. What a source leaves open is refused, and a field of a recipe's `data` decides it.
"""
