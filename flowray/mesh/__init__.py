"""Messages between processes: frames, links that resume, gRPC streams, identities. Knows nothing of tasks.

`link` is the protocol without any IO, `endpoint` carries it over gRPC streams, `identities` and `tokens` say who may.
"""
