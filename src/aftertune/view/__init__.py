"""Shows a ledger in the browser: a server for one person, read-only except for names, tags and notes.

    aftertune view                                    http://127.0.0.1:7788
    app = make_app(LedgerSource(path), access)        the ASGI application

How the room is laid out, and how to add a page, is in README.md beside this file.
"""
