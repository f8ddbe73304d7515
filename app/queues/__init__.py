"""Queues as customers and operators see them: a vMTA and a destination site; held, released, slowed down."""
