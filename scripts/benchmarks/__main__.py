"""Measures the supervisor: how soon a computation is answered, and how many VMs one host bears.

scripts/bench start [--rounds 10] [--cold-rounds 10] [--results DIR]
scripts/bench scale [--vms 1000] [--real 50] [--seconds 60] [--json FILE]
scripts/bench bodies [--posts 8] [--json FILE]
scripts/bench data [--megabytes 2000] [--json FILE]
scripts/bench consoles [--vms 50] [--json FILE]
scripts/bench runs [--runs 20000] [--json FILE]
scripts/bench fleet [--rounds 200] [--seconds 20] [--servers 1] [--json FILE]
scripts/bench simulate [--runs 1000000] [--hosts 1000] [--processes 1] [--results DIR]
scripts/bench floors [--seconds 4] [--turns 5] [--json FILE]
scripts/bench campaign [--cold 200] [--clones 1000] [--at-once 1] [--record FILE]
"""

from __future__ import annotations

import argparse

from scripts.benchmarks import (
    bodies,
    campaign,
    consoles,
    data,
    fleet,
    floors,
    runs,
    scale,
    simulate,
    start,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    for name, module in (
        ("start", start),
        ("scale", scale),
        ("bodies", bodies),
        ("data", data),
        ("consoles", consoles),
        ("runs", runs),
        ("fleet", fleet),
        ("simulate", simulate),
        ("floors", floors),
        ("campaign", campaign),
    ):
        command = commands.add_parser(
            name,
            help=str(module.__doc__).partition("\n")[0],
            description=module.__doc__,
            formatter_class=argparse.RawTextHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(main=module.main)
    wanted = parser.parse_args()
    wanted.main(wanted)


if __name__ == "__main__":
    main()
