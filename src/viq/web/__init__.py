"""`viq web`: pages to look at codes, ask about pictures and browse stores, from this machine."""
