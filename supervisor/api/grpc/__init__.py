"""The gRPC API: protocol buffers to values and back.

`server` listens, `services` answers, `messages` translates, `errors` has the one table from an
error to a status code. grpc.aio is asyncio's, so the methods here are asyncio-flavoured.
"""
