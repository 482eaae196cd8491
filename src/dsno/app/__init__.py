"""The web page of a trained model: what it is asked for, what it draws, and who may ask.

Enters here: what a browser shows or sends. Only `page` and `server` know Gradio and uvicorn, which
come with the extra `app`; what is drawn, the limits and the sentences are tested without them.
"""
