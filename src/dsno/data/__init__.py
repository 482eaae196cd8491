"""Real data: images from a folder, arrays, a Hugging Face data set or scikit-learn's digits.

One module for each kind of source; all give the same `Dataset`.
"""
