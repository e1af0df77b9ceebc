"""The watching proxy: an ASGI application between clients and an OpenAI-compatible server.

It needs the extra ``monitor``, and neither torch nor any engine.
"""
