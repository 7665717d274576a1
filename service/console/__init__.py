"""The console: pages for the people who run the service.

people.py   who may log in, and what they may do
access.py   login, sessions, the proof that a form is ours, headers
bulk.py     an action on many events, in steps
pages.py    what each page shows
command.py  `python -m service console hash`

It reads what the commands read (service/status.py, service/inbox/search.py) and acts through
service/repair.py. Pages run on the threads of the web process, never in its loop.
"""
