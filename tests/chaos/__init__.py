"""Faults on purpose: what is killed, filled, cut or garbled, and what must hold afterwards."""
