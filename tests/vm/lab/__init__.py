# SPDX-License-Identifier: Apache-2.0
"""A laboratory of small real Linux guests and network namespaces, for tests.

`image` makes a kernel and an initramfs from Debian packages, without root. `qemu` starts a guest from them and runs
shell commands in it. `netns` makes the host's end of the wire. `recipes` are the long steps (storage, streams).
Nothing here knows vmq: a guest is joined to whatever listens on a vhost-user socket, or by a cable to another.

It runs on Debian 12, as root for namespaces only. `packages.txt` names the packages that it and its tests need on the
host; what goes into guests is downloaded, not installed.
"""
