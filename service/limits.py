"""Limits of a request, a connection and a web process. No other module defines one."""

MAX_BODY = 262_144
"""Bytes of a body. A session has at most 50 metadata keys of 500 characters and no images; Stripe's
own sample handlers limit the body to 65,536 (https://docs.stripe.com/webhooks)."""

MAX_HEAD = 32_768
"""Bytes of request target, header names and values together."""

MAX_HEADERS = 100
"""Header fields. Stripe sends about a dozen; a CDN, a load balancer and tracing add some thirty."""

MAX_REQUEST = 524_288
"""Bytes of a whole request as it is sent, chunk framing and trailers included."""

MAX_CHUNKS = 4_096
"""Pieces of a body that is sent in chunks: proxies send some kilobytes in each."""

MAX_PIPELINED = 128
"""Requests of one connection that wait for their responses."""

MAX_CONNECTIONS = 1_000
"""Connections of a process. Each takes a file descriptor."""

MAX_HELD = 16 << 20
"""Bytes of requests that a process keeps, unfinished or waiting for a response, of all connections
together."""

MAX_WAITING_PAGES = 64
"""Requests to other routes than the webhook that wait for a thread."""

READ_DEADLINE = 6.0
"""Seconds in which a request must arrive whole. Stripe's are one or two packets."""

ANSWER_DEADLINE = 30.0
"""Seconds in which a request must be answered. Deliveries are answered by `ACCEPT_DEADLINE`, and
pages wait for Redis no longer than its time limits say: past this one the process has a bug."""

SEND_DEADLINE = 6.0
"""Seconds in which a client must take what is sent to it."""

KEEP_ALIVE = 95.0
"""Seconds an idle connection is kept. Longer than proxies keep theirs (nginx 60 s, Heroku's router
90 s), so that the proxy closes first: a request sent on a closing connection is lost."""

LINGER = 2.0
"""Seconds a connection is read after its last response, for the client to close it first: closing
with bytes unread makes TCP discard the response (RFC 9112, 9.6)."""

ACCEPT_DEADLINE = 1.5
"""Seconds in which Redis must have accepted an event; then the delivery is answered 503. Stripe and
our contract allow two seconds for the whole answer."""
