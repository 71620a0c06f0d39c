"""Attacks on the real service, with real guests; each is refused, or `scripts/attack` fails."""
