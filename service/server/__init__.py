"""The HTTP server of the web process: a gunicorn worker class with one event loop.

http.py        bytes in, requests out; responses in, bytes out (no I/O)
client.py      one client's connection in the loop: deadlines and backpressure
redis_link.py  one connection to Redis in the loop: pipelines out, replies in
wsgi.py        runs the WSGI application for everything but deliveries, on threads
worker.py      the loop: listens, decides deliveries in batches, drains at the end
"""
