# SPDX-License-Identifier: Apache-2.0
"""What a NIC can do for vmq, tried step by step: for its owner, before anything is set up.

    Nic (device.py)             one device: each thing that is done to it is taken back before the call is over
    STEPS (steps.py)            what is looked at or tried, in order; a Result each
    examine (examination.py)    all of them, and whether the device is as it was found

Nothing is said to work that was not tried, or that the driver does not say itself; then it is said that the driver says it. What
cannot be tried here is skipped, with the reason. docs/hardware.md
"""

from __future__ import annotations

from vmq.nic.device import Nic
from vmq.nic.examination import Step, examine, held, refuse

__all__ = ["Nic", "Step", "examine", "held", "refuse"]
