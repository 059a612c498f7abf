"""`viq web`: pages to look at codes, to ask about pictures and to browse stores, from this machine."""
