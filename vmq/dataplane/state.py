# SPDX-License-Identifier: Apache-2.0
"""The rows that control plane and kernels share, and our own limits.

Two kinds of rows. *Version* rows (`tables` and what it points to) never change once a worker can see them:
control builds a whole new version and publishes its address in `engine["tables"]` (docs/adr/0003). *State* rows
live in one shared segment from start to end and have exactly one writer, named beside each.

        engine ──► tables (version n) ──► vports, queues, virtqueues, regions, buckets, groups, lanes, …
           │
           └─────► state rows: workers, queue_state, ring_state, lane_state        same index as the version row

A receive queue `q` has virtqueues `2q` (to_guest) and `2q + 1` (from_guest). Addresses are host addresses in
bytes; a count is beside each. Everything is int64 unless memory traffic matters, so that interpreted and
compiled arithmetic agree.
"""

from __future__ import annotations

from vmq.abi.layout import i32, i64, layout, offset, rows, u8, u64
from vmq.dataplane.reasons import DROP_COUNT

BURST = 64  # frames a round takes from one source at most
FRAMES = 256  # rows for frames: a segmented super-frame makes many of one
PIECES = 8192  # scattered parts of the frames of one round
CHAIN_MAX = 1024  # descriptors of one indirect table; direct chains are bounded by the queue size
HEAD = 64  # bytes of a guest's frame that are copied once: they are checked, and they are delivered
HEAD_STRIDE = 128  # room for HEAD and the alignment of its cache line
# Descriptors that one receive queue may make a round walk. 64 frames of 9000 bytes into buffers of 64 bytes take 9024;
# chains of empty descriptors would otherwise cost a neighbour seconds.
STEPS = 16384
CLAIMS = 256  # mergeable receive buffers that one frame may span
DELIVERIES = 16384  # (frame, receive queue) pairs of one round; more than any flood
BOUNCE = 1 << 17  # one frame made contiguous
ARENA = 1 << 20  # segments of super-frames of one round
FRAME_MAX = 65535 + 14 + 4  # the longest frame of any kind, tag included
EVENTS = 1024  # rows of a worker's ring of events for control
GAP_PARTS = 64  # a nanosecond of paced replay has so many parts
STRANGERS = 16  # addresses without a filter that a worker keeps count of
READY = 64  # descriptors one wait may report
BATCH_BINS = 8  # 1, 2-3, 4-7, … frames an indication
# Time from taken to shown: the first bin is below 2^9 ns, the next below 2^10, …, the last is 2^31 ns and more.
LATENCY_BINS, LATENCY_SHIFT = 24, 8

MAX_WORKERS = 64
MAX_VPORTS = 2048
MAX_QUEUES = 16384
MAX_LANES = 1024
MAX_LEARN = 16
WAITING = 8  # receive queues whose frames wait in one hand-over ring, and are remembered
HANDOVER_RINGS = 2 * MAX_WORKERS * MAX_WORKERS
NONE = -1
EPOCH_GONE = 1 << 62  # what a worker that has left announces

LINE = 64  # bytes of a cache line
M16 = 0xFFFF
M32 = 0xFFFFFFFF

# --- events from a worker to control ---
EVENT_LEARN, EVENT_FAULT, EVENT_SPOOFED, EVENT_WAITS = 1, 2, 3, 4

# --- kinds of uplink lanes, tested once a burst ---
LANE_REPLAY, LANE_TAP, LANE_PACKET, LANE_XDP = 1, 2, 3, 4

# --- a receive queue that is direct: frames for it are sent into its pair, or wait where it has none; or no longer ---
LED, LEAVING = 1, 2
# Where a frame on the way through its pair was lost: no buffer, longer than one, no room or not this VM's.
LOST_NO_BUFFER, LOST_TOO_LONG, LOST_PAIR, LOST = range(4)

# --- a receive queue with its own queue of a TAP: its buffers take no frame of the longest kind; a frame was not its ---
UNFIT_BUFFERS, UNFIT_FRAME = 1, 2

# --- what a generic receive filter leads to, if not to a receive queue ---
TO_DROP_QUEUE, TO_DEFAULT_QUEUE = -2, -3

# --- features of a virtqueue that a kernel asks for ---
RING_EVENT_IDX, RING_INDIRECT, RING_MERGEABLE = 1, 2, 4
RING_OBSERVED = 8  # not of the driver: its frames are captured or measured (observe.py)

# --- directions, as bits of what is captured ---
TO_GUEST, FROM_GUEST = 1, 2

# --- what became of a delivery in its round; until then 0 ---
DONE, DONE_DROPPED = 1, 2

# ------------------------------------------------------------------------------------------------------------
# Version rows: written by control before publication, never after.

tables = rows(
    ("epoch", i64),
    ("vports", i64), ("vport_count", i64),
    ("queues", i64), ("queue_count", i64),
    ("virtqueues", i64),  # 2 * queue_count rows
    ("regions", i64), ("region_count", i64),
    ("buckets", i64), ("bucket_mask", i64),
    ("near_buckets", i64), ("near_mask", i64),  # the same addresses whatever their VLAN, for near misses
    ("rules", i64), ("rule_count", i64),  # `rule` of uplink u at u + 1; count 0: nobody has generic filters
    ("field_tests", i64), ("field_test_count", i64),
    ("groups", i64), ("group_count", i64), ("unknown_count", i64),  # VM ports that accept unknown unicast frames
    ("members", i64), ("member_count", i64),  # i64 numbers of VM ports, group after group
    ("learns", i64), ("learn_count", i64),
    ("lanes", i64), ("lane_count", i64),
    ("jobs", i64),  # one row a worker
    ("polls", i64), ("poll_count", i64),  # i64 numbers of receive queues, worker after worker
    ("own_lanes", i64), ("own_lane_count", i64),  # i64 numbers of lanes, worker after worker
    ("moderated", i64), ("moderated_count", i64),  # i64 numbers of receive queues, worker after worker
    ("directs", i64), ("direct_count", i64),  # the same of those that are direct, or have a queue of a TAP
    ("timed", i64),  # 1: workers measure how long they work (work_ns), for a comparison
    ("frame_limit", i64),  # frames a round may take so that no flood overruns DELIVERIES
)  # fmt: skip

vport = rows(
    ("active", i64),
    ("uplink", i64),  # index of the uplink, NONE without
    ("vlan", i64),  # its segment; 0: untagged and priority-tagged
    ("mac", i64),  # the first of its filters: most frames come from there
    ("first_queue", i64), ("queue_count", i64),
    ("region_first", i64), ("region_count", i64),  # sorted by guest address
    ("frame_max", i64),  # bytes, without tag
    ("learn_first", i64), ("learn_count", i64), ("learn_left", i64),
    ("spoof_check", i64),
    ("storm_gap", i64),  # ns from one broadcast or multicast frame of the guest to the next; 0: any number
    ("first_lane", i64),  # lane of worker 0 on its uplink; NONE without
)  # fmt: skip

queue = rows(
    ("vport", i64), ("index", i64),
    ("worker", i64),
    # A queue on its way to `worker`: who owned it delivers what it was handed, and nobody anything else; else NONE. `late`:
    # it takes long, and frames of sources that do not wait are dropped.
    ("former", i64), ("late", i64),
    ("shared", i64),  # 1: no receive queue of its own; served by the default queue, frame by frame
    ("generation", i64),  # of the receive queue in this row: what is on its way to an earlier one is dropped
    ("keep", i64), ("oldest", i64),  # frames that may wait for buffers; 1: the oldest is dropped first (overload.py)
    ("direct", i64), ("led", i64),  # its `direct_queue`, 0 without; LED or LEAVING
    ("nic", i64),  # its `nic_queue`, 0 without; `led` says of that, too, whether the kernel has the guest's buffers
    ("tap", i64), ("straight", i64),  # descriptor of its own queue of a TAP, NONE without; 1: read straight into guest memory
    ("gap", i64), ("gather", i64),  # moderation (moderate.py): ns between indications, frames of one; 0: no limit
)  # fmt: skip

virtqueue = rows(
    ("running", i64),  # a kernel owns ring_state; otherwise protocol code does
    ("enabled", i64),  # vhost-user "Ring states": started and disabled takes and discards
    ("size", i64),
    ("desc", i64), ("avail", i64), ("used", i64),
    ("features", i64),  # RING_*
    ("call_fd", i64), ("error_fd", i64),  # eventfds, NONE without
    ("polled", i64),  # the front-end does not kick: looked at every POLL_WAIT_MS
)  # fmt: skip

region = layout(32, ("guest", u64), ("size", u64), ("host", u64), ("vport", i64))

bucket = layout(16, ("key", i64), ("uplink", i32), ("value", i32))  # key: MAC | VID << 48
KEY_EMPTY = -1
VID_SHIFT = 48
# Knuth's multiplicative hash: operands stay below 2^31 and 2^32, so that nothing wraps in either mode.
HASH_MASK, HASH_FACTOR = 0x7FFFFFFF, 0x9E3779B1

group = layout(16, ("first", i64), ("count", i64))
rule = layout(16, ("first", i64), ("count", i64))  # rows of `field_tests` (match.py)
learn = layout(16, ("mask", i64), ("value", i64))

lane = rows(
    ("kind", i64),
    ("uplink", i64),
    ("worker", i64),
    ("fd", i64),
    ("receives", i64),
    ("frame_max", i64),  # bytes, without tag
    ("forward_link_local", i64),
    ("lossless", i64),  # replay: not read while a destination is full
    ("source", i64), ("source_count", i64),  # replay: `recorded` rows
    ("laps", i64),  # replay: times round; 0 for ever
    ("gap", i64),  # replay: time from frame to frame, in ns / GAP_PARTS; 0: full speed
    ("sink", i64),  # replay: byte ring for what leaves (handover.py); 0: counted only
    ("buffers", i64), ("buffer_size", i64),  # receive buffers, one a message
    ("messages", i64),  # packet: mmsghdr[BURST] to receive into, prepared by the uplink
    ("transmit", i64),  # packet: mmsghdr[BURST] to send from
    ("headers", i64),  # packet: BURST empty packet headers, each with room for a tag
    ("held", i64),  # packet: `super_frame`, the one that is being cut into segments
    ("backlog", i64),  # replay: `waiting` rows, frames whose destination was full
    ("xdp", i64),  # xdp: `xdp_socket`; what the kernel keeps comes as to a packet lane
)  # fmt: skip

job = layout(
    64,
    ("poll_first", i64), ("poll_count", i64),
    ("lane_first", i64), ("lane_count", i64),
    ("moderated_first", i64), ("moderated_count", i64),
    ("direct_first", i64), ("direct_count", i64),
)  # fmt: skip

# A frame of a capture or a generator, normalised when it was loaded: untagged, its tag beside it.
recorded = layout(32, ("address", i64), ("length", i64), ("tci", i64), ("tagged", i64))
waiting = layout(16, ("recorded", i64), ("queue", i32), ("generation", i32))

# A TCP or UDP frame longer than the wire's, and how far it is cut (offload.py).
super_frame = layout(
    96,
    ("address", i64), ("length", i64),
    ("tci", i64), ("tagged", i64),
    ("kind", i64),  # NET_HDR_GSO_*, without ECN
    ("size", i64),  # payload of a segment
    ("network", i64), ("transport", i64), ("payload", i64),  # where they begin, from the first byte of the frame
    ("next", i64), ("count", i64),  # segments made, segments in all; equal: done
    ("spare", i64),
)  # fmt: skip

# An AF_XDP socket (xdp.py). A ring of it, where the kernel has put it: addresses of two u32 indices and a word of flags.
xdp_ring = layout(
    40, ("producer", i64), ("consumer", i64), ("flags", i64), ("entries", i64), ("size", i64)
)  # fmt: skip
xdp_socket = rows(
    ("fd", i64),
    ("umem", i64), ("chunk", i64),  # its memory; bytes of a chunk, a power of two
    ("receive", xdp_ring), ("transmit", xdp_ring), ("fill", xdp_ring), ("completion", xdp_ring),
    ("spare", i64),  # i64 offsets of chunks to send from
    ("lengths", i64),  # i64 lengths of the frames in the transmit ring, without tag
    # From here on: the worker of the lane.
    ("spare_count", i64),
    ("lent", i64),  # entries of the receive ring whose chunks the round still reads
    ("turn", i64),
    ("counted", i64), ("lost", i64),  # index of the transmit ring up to which frames are counted; of those behind it, lost
    ("kicks", i64),
)  # fmt: skip

# A receive queue whose buffers the kernel fills (direct.py).
span = layout(24, ("guest", i64), ("size", i64), ("place", i64))
direct_queue = rows(
    ("fd", i64),
    ("memory", i64), ("size", i64), ("chunk", i64),  # what the kernel may write: host address, bytes; bytes that it counts a buffer
    ("longest", i64), ("least", i64),  # bytes of a frame that may be led into the pair; that a buffer must have
    ("spans", i64), ("span_count", i64),  # `span` rows: where guest memory lies in it
    ("receive", xdp_ring), ("fill", xdp_ring),
    ("poll", i64),  # control: socket by which the kernel's work for the pair is done here; NONE: it is done where frames come from
    ("near", i64), ("near_state", i64), ("turns", i64),  # `lane` into the pair, its `lane_state`; i64 numbers of frames
    ("heads", i64), ("places", i64),  # i64 of posted chains, by number: first descriptor; offset of the buffer in `memory`
    ("lost", i64, (LOST,)),  # control: frames so far, by where
    # From here on: the worker while the queue is direct, control otherwise.
    ("first", i64), ("posted", i64),  # number of the first chain that the kernel has not filled; how many it has
    ("stale", i64),  # so many entries of the fill ring, the last ones, are from before
    ("begun", i64),  # 1: the kernel has had buffers since frames are led here
    ("booked", i64, (LOST,)),  # of `lost`, what is in the counters of the queue
    ("unfit", i64),  # 1: the next chain is none for the kernel
)  # fmt: skip

# A receive queue with a queue of the NIC for its own (nic_queue.py). Numbers of frames are those of the kernel's rings, modulo 2^32.
nic_queue = rows(
    ("fd", i64),
    ("memory", i64), ("size", i64), ("chunk", i64),  # as above; the guest's memory, and ours behind it
    ("bounce", i64),  # offset of ours: a chunk for each entry of the fill ring
    ("longest", i64), ("least", i64),  # bytes of a frame that the NIC's program lets through; that a buffer must have
    ("spans", i64), ("span_count", i64), ("receive", xdp_ring), ("fill", xdp_ring),
    ("heads", i64), ("places", i64),  # i64 of bound chains, by number of the frame: first descriptor; offset of the buffer
    ("until", i64),  # control: from this frame on nothing lands in the guest's buffers; NONE: nobody knows
    # From here on: the worker of the queue while it is led, or leaving; control otherwise.
    ("bound", i64),  # so many of the next frames have a chain
    ("withdrawn", i64), ("free", i64),  # 1: entries that the kernel has not used name our chunks; no frame is bound, and none will be
    ("waits", i64),  # 1: a frame of another path waits for the queue to be switched
    ("unfit", i64),  # 1: the next chain is none for the kernel
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------------
# State rows. The writer is named; everybody may read.

engine = rows(  # control, before the first worker starts; `tables` and `stop` later
    ("magic", i64),
    ("tables", i64),  # address of the published version: store-release by control
    ("stop", i64),
    ("worker_count", i64),
    ("control_fd", i64),  # eventfd that wakes control for events
    ("workers", i64),
    ("queue_state", i64),
    ("ring_state", i64),
    ("lane_state", i64),
    ("port_state", i64),
    ("misses", i64),  # near_miss rows, worker after worker
    ("strangers", i64),  # stranger rows, worker after worker
    ("watches", i64), ("latencies", i64),  # `watch` and `latency` rows
    ("measured", i64),  # 1: some receive queue is measured, so every round notes when it began
    ("polls", i64),  # 1: no processor ever sleeps
    ("rings", i64),  # i64 addresses of hand-over rings: handover.ring_of
    ("mappings", i64),  # `mapping` rows of all guest memory, for the SIGBUS handler
)  # fmt: skip

worker = rows(  # the worker; addresses and descriptors: control, before it starts
    ("epoch", i64),  # store-release: rows of older versions are no longer used
    ("sleeping", i64),  # store: in epoll_wait, or about to be
    ("calling", i64),  # descriptor + 1 while a call is written; a watchdog looks
    ("rounds", i64), ("bursts", i64), ("sleeps", i64), ("wakeups", i64), ("busy_ns", i64),
    ("work_ns", i64),  # in rounds that moved something, while `timed`
    ("index", i64),
    ("engine", i64),
    ("tables", i64), ("woke", i64),  # the version in use; when the last sleep ended, ns
    ("epoll_fd", i64), ("doorbell_fd", i64),
    ("frames", i64), ("heads", i64), ("pieces", i64), ("targets", i64),
    ("deliveries", i64), ("todo", i64), ("touched", i64), ("outgoing", i64),
    ("claims", i64), ("chains", i64), ("posted", i64), ("iovecs", i64), ("header", i64), ("scratch", i64), ("bounce", i64), ("arena", i64),
    ("ready", i64), ("clock", i64), ("columns", i64),
    # How long it looks for work before it sleeps, ns, since when it has, 0: it has work; times that its processor was taken away (patience.py).
    ("patience", i64), ("idle_since", i64), ("switches", i64), ("usage", i64),
    # The rings of guests (loop.guest_rounds): i64 queue numbers, the first `awake` of which are looked at in each round, and
    # of the others `turn` next; of which version they are; i32 rounds without a frame by queue; 1: wake them all.
    ("order", i64), ("awake", i64), ("turn", i64), ("ordered", i64), ("quiet", i64), ("eager", i64),
    ("events", i64), ("event_head", i64),
    ("misses", i64), ("strangers", i64),  # near_miss rows of all VM ports, stranger rows: this worker's own
    ("frame_count", i64), ("piece_count", i64), ("delivery_count", i64), ("touched_count", i64),
    ("outgoing_count", i64), ("arena_used", i64), ("total", i64), ("claim_count", i64),
    ("steps_left", i64),  # of STEPS
    ("broken", i64),  # fault found in this round, NO_FAULT without
    ("parked", i64), ("accepts", i64),  # parcels that stay in their ring after this round; rounds of parcels so far
    ("taken", i64),  # when the frames of this round were, ns; 0: nobody asks; NONE: their parcels say it
    ("captures", i64),  # of the receive queue whose guest sends in this round: the first `capture`; 0 without
)  # fmt: skip

# What became of the frames of one source: frames in = forwarded + drops, the handover_* drops apart. Those are of
# copies: copies = offered to receive queues + handover_* drops, here and at the receive queues.
account = layout(16 + 8 * DROP_COUNT, ("forwarded", i64), ("copies", i64), ("drops", i64, (DROP_COUNT,)))

queue_state = rows(  # the worker of the queue (handover_moved: its former one); offered_to_guest = frames_to_guest + to_guest_* drops
    ("frames_to_guest", i64), ("bytes_to_guest", i64),
    ("frames_placed", i64), ("bytes_placed", i64),  # of those, by the kernel
    ("frames_from_guest", i64), ("bytes_from_guest", i64),
    ("indications", i64), ("suppressed", i64), ("put_off", i64), ("call_lost", i64), ("offered_to_guest", i64),
    # Why frames of its own queue of a TAP are not read straight, UNFIT_*; control clears it while none are.
    ("unfit", i64),
    ("batches", i64, (BATCH_BINS,)),
    ("to_guest_drops", i64, (DROP_COUNT,)),
    ("account", account),  # of what the guest sent
)  # fmt: skip

ring_state = rows(  # the worker while the virtqueue runs, control otherwise
    ("next_avail", i64),
    ("next_used", i64),
    ("shown", i64),  # used index at the last indication
    ("first", i64),  # 1: the next indication is sent in any case
    ("asleep", i64),  # 1: the driver was asked to kick
    ("region", i64),  # where the last buffer was found: a hint
    ("owed", i64),
    ("indicated", i64),  # moderation: frames that wait for an indication; when the last one was, ns
)

watch = rows(  # control; looked at where a version shows RING_OBSERVED
    ("captures", i64),  # address of the first `capture`; 0: none. One that is taken out is freed an epoch later
    ("measured", i64),
)  # fmt: skip
capture = layout(  # control, before it is linked; `next` later
    48,
    ("next", i64), ("ring", i64),  # byte ring of one receive queue: `packet_record` rows
    ("snaplen", i64), ("directions", i64),  # bytes of a frame that are kept
    ("interface", i64),  # its number in the capture file
    ("offset", i64),  # CLOCK_REALTIME - CLOCK_MONOTONIC when it began, ns
)  # fmt: skip
# Size as in `parcel`; the bytes of the block behind it.
packet_record = layout(16, ("size", i64), ("length", i64))
latency = rows(  # the worker of the queue
    ("unstamped", i64),  # frames that were taken before anybody asked
    ("total", i64),  # ns
    ("bins", i64, (LATENCY_BINS,)),
)  # fmt: skip

port_state = rows(  # any worker that serves the port; control clears
    ("fault", i64),
    ("spoofed", i64),  # the last source address refused by the spoof check
    ("storm_due", i64),  # when the next broadcast or multicast frame is due, ns
)

near_miss = layout(  # one row a worker and VM port: the worker; frames that it nearly got, or should not have sent
    32,
    ("wrong_vlan", i64), ("seen_vlan", i64),  # to one of its addresses in another VLAN; the last one
    ("duplicate", i64),  # broadcast or multicast from the wire with its source address
    ("spare", i64),
)  # fmt: skip
stranger = layout(32, ("mac", i64), ("vid", i64), ("uplink", i64), ("count", i64))  # count 0: free

lane_state = rows(  # the worker of the lane
    ("cursor", i64), ("lap", i64), ("pending", i64),  # replay
    ("began", i64), ("due", i64),  # paced replay: when it began, ns; when the next frame is due, ns / GAP_PARTS later
    ("have", i64), ("taken", i64), ("segmented", i64),  # packet: messages received, turned into frames; super-frames
    ("frames_from_wire", i64), ("bytes_from_wire", i64),
    ("frames_to_wire", i64), ("bytes_to_wire", i64),
    ("completed", i64),  # checksums finished in software
    ("refused", i64),  # xdp: what the kernel answered when it was asked to send and could not: nobody wakes for what is pending
    ("to_wire_drops", i64, (DROP_COUNT,)),
    ("account", account),  # of what came from the wire
)  # fmt: skip

mapping = layout(
    32, ("host", i64), ("length", i64), ("vport", i64), ("spare", i64)
)  # control; length 0: free
MAX_MAPPINGS = 8192

# One page at a fixed address tells a signal handler, which takes no arguments of ours, where the engines are.
ANCHOR = 0x2000_0000_0000
ANCHOR_SLOTS = 16  # i64 addresses of engine rows, 0 where free

event = layout(24, ("kind", i64), ("vport", i64), ("value", i64))

# ------------------------------------------------------------------------------------------------------------
# A round's scratch, owned by its worker.

frame = layout(
    88,
    ("address", i64),  # first contiguous part, private to the engine
    ("head", i64),  # its bytes; the rest is in pieces
    ("length", i64),  # all bytes, without tag
    ("piece_first", i64),
    ("piece_count", i64),
    ("vid", i64),  # its segment
    ("tci", i64),
    ("tagged", i64),  # 1: carries `tci` on the wire
    ("account", i64),  # address of the account of its source
    ("source", i64),  # VM port it came from, NONE from the wire
    ("uplink", i64),  # its segment is (uplink, vid)
)

piece = layout(16, ("address", i64), ("length", i64))
delivery = layout(16, ("frame", i32), ("next", i32), ("queue", i32), ("done", i32))  # next: same queue; DONE
# Not of one round: `held` counts the frames that this worker handed to itself and has not delivered yet, `kept` those of
# them in the ring for sources that wait, `aside` those that an overload policy put there; the oldest `excess` are to go.
# `closed`: the last of `accepts` that has passed a frame of this queue over; it passes over all behind it.
todo = layout(
    32, ("first", i32), ("last", i32), ("count", i32), ("held", i32), ("kept", i32), ("excess", i32), ("aside", i32), ("closed", i32)
)  # fmt: skip
claim = layout(16, ("head", i64), ("length", i64))
# A chain that was read ahead. `address`: where its one buffer lies, all `length` bytes of it; 0: not that simple, `walk` it.
chain = layout(24, ("head", i64), ("address", i64), ("length", i64))

# A byte ring (handover.py): one writer, one reader, their indices on lines of their own.
byte_ring = layout(
    192,
    ("head", i64), ("kept", i64), ("lost", i64), ("writer_pad", u8, (40,)),  # bytes ever written; a capture's frames: the writer
    # The reader: bytes ever read; up to where all others wait for buffers, for which receive queues, by which tables.
    ("tail", i64), ("seen", i64), ("version", i64), ("waiting_count", i32), ("waiting", i32, (WAITING,)), ("reader_pad", u8, (4,)),
    ("size", i64), ("data", i64), ("rest", u8, (48,)),
)  # fmt: skip
parcel = layout(
    48,
    ("size", i64),  # of the whole record, a multiple of 16; negative: skip to the start of the ring
    ("length", i32),  # of the frame behind this header
    ("vid", i32),
    ("tci", i32), ("tagged", i32),
    ("queue", i32), ("generation", i32),  # queue NONE: passed over
    ("source", i32), ("uplink", i32),
    ("taken", i64),  # w["taken"] of its round
)  # fmt: skip

# Where the account of a source lies: in the row of its receive queue or lane.
QUEUE_STATE, LANE_STATE = queue_state.itemsize, lane_state.itemsize
QUEUE_ACCOUNT = offset(queue_state, "account")
LANE_ACCOUNT = offset(lane_state, "account")
