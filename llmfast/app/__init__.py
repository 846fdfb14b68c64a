"""The dashboard, ``llmfast app``: pages of Streamlit that read files and ask servers, and hold no model themselves.

``finding`` and ``results`` read what is in a folder, ``servers`` starts a process for each model that is used,
``asking`` asks them, ``background`` holds what is being written, ``widgets`` is what pages share, and ``views`` has a
file for each page.
"""
