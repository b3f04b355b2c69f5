# SPDX-License-Identifier: Apache-2.0
"""Rules of a NIC that lead addresses of VMs to receive queues of their own: added, followed, deleted.

    wanted      address → queue      ─► a rule that is there already: used, and left as it is, whoever has set it
                                     ─► else one of ours, deleted when it is not wanted any more

What outlives a crash is a rule that leads an address to a queue: the next engine uses it, and it stays until somebody deletes it, as nobody can
tell it from one of the owner's. N-tuple filters are switched on where they are off, and off again when none is left.

A device that takes no rules is no error: its owner leads frames there by other means, or they come as ever. `why` says so. ethtool(8) -N
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from vmq import ethtool
from vmq.abi.ethernet import mac_text
from vmq.errors import HostError

LOG = logging.getLogger(__name__)
NTUPLE = "rx-ntuple-filter"


class NicRules:
    """Of one device, in the namespace of this thread."""

    def __init__(self, device: str) -> None:
        self.device, self.why = device, ""
        self._ours: dict[int, tuple[int, int]] = {}  # address → queue, place
        self._refused: dict[int, int] = {}  # what was wanted when it did not work: not again for the same
        self._switched = False  # on, by us

    def follow(self, wanted: Mapping[int, int]) -> None:
        """These addresses are to come by these queues, and no others by rules of ours."""
        for mac in [mac for mac, (queue, _) in self._ours.items() if wanted.get(mac) != queue]:
            self._delete(mac)
            self._refused = {}  # there is room now, perhaps
        missing = {mac: queue for mac, queue in wanted.items() if mac not in self._ours}
        if missing and missing != self._refused:
            self._add(missing)
        elif not missing:
            self._refused, self.why = {}, ""
        if not self._ours:
            self._switch_off()

    def _add(self, missing: Mapping[int, int]) -> None:
        self._refused, self.why = {}, ""
        try:
            self._switch_on()
            there = ethtool.rules_to(self.device)
            for mac, queue in missing.items():
                if mac not in there:
                    place = ethtool.add_rule(self.device, mac, queue, ethtool.place_for_rule(self.device))
                    self._ours[mac] = queue, place
                elif there[mac] != queue:
                    self.why = f"a rule that is not ours leads {mac_text(mac)} to queue {there[mac]}"
        except OSError as error:
            self.why = f"{self.device} takes no rule: {error.strerror}"
        except HostError as error:
            self.why = f"{self.device} takes no rules: {error.wrong}"
        self._refused = {mac: queue for mac, queue in missing.items() if mac not in self._ours}

    def _delete(self, mac: int) -> None:
        queue, place = self._ours.pop(mac)
        try:
            if ethtool.rule_at(self.device, place) == (mac, queue):  # else somebody has put his own there
                ethtool.delete_rule(self.device, place)
        except OSError as error:
            LOG.warning("%s keeps the rule %d for %s: %s", self.device, place, mac_text(mac), error.strerror)

    def _switch_on(self) -> None:
        """HostError if the device has no such filters."""
        said = ethtool.describe(self.device)
        if not (said and said.features.get(NTUPLE)):
            ethtool.switch(self.device, NTUPLE, on=True)
            self._switched = True

    def _switch_off(self) -> None:
        """Unless others have rules by now, which some drivers would forget."""
        if self._switched:
            self._switched = False
            with contextlib.suppress(HostError, OSError):
                if ethtool.rules(self.device) == 0:
                    ethtool.switch(self.device, NTUPLE, on=False)

    def close(self) -> None:
        """None of ours is left. It may be called again."""
        self.follow({})
