"""The dashboard, ``llmfast app``: pages of Streamlit that read files and ask servers, and hold no model themselves.

``finding`` and the modules beside it read what is in a folder, ``servers`` starts a process for each model that is used,
``background`` holds what is being written, ``widgets`` is what pages share, and ``views`` holds a file for each page.
"""
