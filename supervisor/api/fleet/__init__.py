"""What both wires do with the other members of a fleet.

`asked` is a request to another one, `others` asks them, `runs` has a run done by whichever of them
takes it, `member` is what the wires know of the fleet. Members ask each other over HTTP, whatever
wire their callers use.
"""
