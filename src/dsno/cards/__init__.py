"""What is said of a model beside its weights: README.md, which is its page on the Hub.

Enters here: what is known of a model's making and measuring, put into words for its users.
"""
