# SPDX-License-Identifier: Apache-2.0
"""The API of a running engine: requests over a UNIX socket, answered without stopping anything.

server      lines, clients, and what bounds them       session     a connection: its owner, its stream
schema      the methods, declared once                 stream      events for one client
requests    what may be asked: parameters              answers     what is answered and told
contracts   receive queues and filters                 words       filters as people write them
views       `show`          misses     near misses     explain     where a frame would go
capture     frames of a VM, as a file              histograms  latency and batches
"""
