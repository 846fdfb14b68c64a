"""The program that Streamlit runs for every session, and again whenever something on a page changes."""

import sys
from pathlib import Path

# Streamlit puts the folder of this file on the path, where its modules would hide others of the same names.
sys.path[:] = [each for each in sys.path if Path(each or ".").resolve() != Path(__file__).resolve().parent]

import streamlit as st  # noqa: E402

from llmfast.app.views import PAGES  # noqa: E402
from llmfast.app.widgets import in_a_sentence, loaded_models  # noqa: E402

st.set_page_config(page_title="llmfast", page_icon=":material/bolt:", layout="wide")
page = st.navigation([st.Page(each.show, title=each.title, icon=each.icon, url_path=each.name) for each in PAGES])
st.html("<style>.stMainBlockContainer { padding-top: 3.5rem; }</style>")
with in_a_sentence():
    page.run()
loaded_models()
