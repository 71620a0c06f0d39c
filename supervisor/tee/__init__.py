"""Confidential guests: what the host offers."""
