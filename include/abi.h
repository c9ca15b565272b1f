/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What crosses the line between kernel and agent, written once. bpf/abi.bpf.c names one object of each type, so that
 * BTF and through it src/abi.rs know them. Fixed-width integers, explicit padding, host byte order unless a name says
 * otherwise. Constants are enums: a #define does not reach BTF.
 */
#pragma once

/* ---- the firewall's tables: written by the agent into the idle generation, read by xdp_firewall ---- */

enum fw_limits {
	FW_RULES = 4096,	    /* rules of one address family; a bit each */
	FW_WORDS = 64,		    /* 64-bit words in a row */
	FW_NEAR = 7,		    /* words of a row that stand beside its summary, in one cache line */
	FW_SLOTS = 8192,	    /* counters: one slot a rule for as long as the rule lives */
	FW_NET_ROWS = 8192,	    /* rows of one address field: at most 4097, ids of 13 bits */
	FW_APP_ROWS = 32768,	    /* rows of everything that is not an address, ids of 15 bits */
	FW_PAIRS = 262144,	    /* source port class x destination port class */
	FW_ENVS = 65536,	    /* protocol class x VLAN class x interface class */
	FW_CELLS = 262144,	    /* pair class x environment class x state */
	FW_BLOCKS = 16384,	    /* 256-entry blocks of the IPv4 stride tables, both fields together */
	FW_TRIE = 262144,	    /* words of the IPv6 tries, both fields together */
	FW_LEAVES = 8256,	    /* IPv6 prefixes, both fields together */
	FW_CHAINS = 1048576,	    /* row ids of prefixes that nest, both fields together */
	FW_CACHE = 16384,	    /* entries of the class cache, in sets of two */
	FW_IFACES = 64,		    /* interfaces that the agent guards */
};

/* How the rows of a family are combined. */
enum fw_mode {
	FW_MODE_EMPTY = 0,	    /* no rule of this family: nothing ever matches */
	FW_MODE_MERGED = 1,	    /* rows: source, destination, application */
	FW_MODE_SPLIT = 2,	    /* rows: source, destination, source port, destination port, environment+state */
	FW_MODE_APART = 3,	    /* rows: source, destination, both ports, protocol, VLAN, interface+state */
};

/* Which fields the rules of a family look at, so that a packet pays only for those. */
enum fw_uses {
	FW_USES_PORTS = 1,
	FW_USES_TCP_FLAGS = 2,
	FW_USES_ICMP = 4,
	FW_USES_VLAN = 8,
	FW_USES_IFACE = 16,
	FW_USES_STATE = 32,
	FW_USES_FRAGMENT = 64,	    /* or a field that a later fragment does not have */
	FW_USES_SRC = 128,
	FW_USES_DST = 256,
};

/* A rule as a hit sees it: slot | flags. Also the low bits of a cached answer. */
enum fw_answer {
	FW_SLOT_MASK = 8191,
	FW_DENY = 1 << 13,	    /* the rule denies */
	FW_TELL = 1 << 14,	    /* the rule records each packet */
	FW_STATEFUL = 1 << 15,	    /* the rule asks for a state: look it up and ask again */
	FW_NO_MATCH = 1 << 16,	    /* no rule matched; the slot means nothing */
	FW_CACHED = 1 << 17,	    /* in a cache entry: valid */
	FW_KEY_SHIFT = 18,	    /* in a cache entry: source row 13, destination row 13, application row 15 bits */
};

/* Entry of an IPv4 stride table: a row, or FW_BLOCK | number of a block. */
enum fw_stride { FW_BLOCK = 0x8000 };

/*
 * Word of an IPv6 trie: FW_LEAF | number of a leaf, or a node: its children stand at trie[base + bits of the address].
 * base is the low 20 bits, the position of the first bit (0 is the highest of 128) the next 7, the number of bits
 * (1 to 15, never across bit 64) the next 4.
 */
enum fw_trie_word {
	FW_TRIE_BASE_BITS = 20,
	FW_TRIE_POS_BITS = 7,
	FW_TRIE_SIZE_BITS = 4,
	FW_TRIE_STEPS = 33,	    /* nodes on a path, at most */
	FW_LEAF_BIT = 31,
};

/*
 * An IPv6 prefix. The trie skips bits that do not branch, so a leaf must be compared; an address that leaves the
 * prefix at bit b belongs to the longest prefix around it that is no longer than b. lengths has a bit for each prefix
 * around this one (itself included), bit 63 of lengths[0] for length 1; chain[rank] is the row of the rank-th of them,
 * chain[0] the row of ::/0.
 */
struct fw_leaf {
	__u64 key[2];		    /* host order, high half first */
	__u64 mask[2];
	__u64 lengths[2];
	__u32 chain;		    /* first of its row ids in fw_v6.chain */
	__u16 row;		    /* row of the prefix itself */
	__u16 pad;
	__u64 pad2;
};

/* IPv4 address -> row, 16-8-8. field 0 is the source, 1 the destination. */
struct fw_v4 {
	__u16 top[2][65536];
	__u16 block[FW_BLOCKS * 256];
};

/* IPv6 address -> row. */
struct fw_v6 {
	__u32 root[2];
	__u32 pad[14];
	struct fw_leaf leaf[FW_LEAVES];
	__u32 trie[FW_TRIE];
	__u16 chain[FW_CHAINS];
};

/*
 * Everything of a family but its addresses. Class 0 of a port means: the packet has no port. Tables:
 *   port_block[f][port >> 8] -> b, port_class[f][b << 8 | port & 255] -> class
 *   proto_class[protocol] -> class; for TCP tcp_class[flags], for ICMP (ICMPv6 in the IPv6 family)
 *   icmp_class[icmp_block[type] << 8 | code]; for a fragment after the first one frag_class[protocol]; these three only
 *   when uses says so
 *   vlan_class[vlan id, 0 when untagged], iface_class[number of the interface]
 * MERGED: pair[source class * pair_stride + destination class] -> p
 *         env[(protocol class * vlans + vlan class) * ifaces + interface class] -> e
 *         cell[(p * envs + e) * states + state] -> application row; state is 0 while none was looked up, else 1 + state
 * SPLIT:  the rows of the ports are port_row[f][class]; cell[e * states + state] -> row
 * APART:  protocol: proto_row[class]; VLAN: vlan_row[class]; cell[interface class * states + state] -> row
 * Row ids are local to source, destination and the rest; dst_base and app_base make them a family's.
 */
struct fw_family {
	__u32 mode;		    /* enum fw_mode */
	__u32 uses;		    /* enum fw_uses */
	__u32 dst_base, app_base;
	__u32 near_base, row_base;  /* entries of the map of rows */
	__u32 pair_stride;
	__u32 vlans, ifaces, envs;
	__u32 states;		    /* 1, or 5 when a rule asks for a state */
	__u32 pad[5];
	__u64 cache[FW_CACHE];
	__u32 rule[FW_RULES];	    /* bit -> slot | FW_DENY | FW_TELL | FW_STATEFUL */
	__u16 port_block[2][256];
	__u16 port_class[2][65536];
	__u16 proto_class[256];
	__u16 frag_class[256];
	__u16 tcp_class[256];
	__u16 icmp_block[256];
	__u16 icmp_class[65536];
	__u16 vlan_class[4096];
	__u16 iface_class[FW_IFACES];
	__u16 pair[FW_PAIRS];
	__u16 env[FW_ENVS];
	__u16 cell[FW_CELLS];
	__u16 port_row[2][16384];
	__u16 proto_row[16384];
	__u16 vlan_row[4096];
};

/*
 * A row: the bits of the rules that a value of a field satisfies. It stands twice in a family's part of the map of rows:
 * what most packets need of it in one cache line, eight rows an entry from near_base on, and all of it in an entry from
 * row_base on.
 */
struct fw_near {
	__u64 summary;		    /* a bit for each word that is not zero */
	__u64 word[FW_NEAR];	    /* the first of those words */
};

struct fw_row {
	__u64 word[FW_WORDS];
};

/* ---- the firewall's policy: one for each generation, swapped with its tables ---- */

enum fw_policy_limits {
	FW_OTHER_IFACE = 63,	    /* number of an interface that the agent does not know; 0 to 62 are guarded ones */
	FW_IFACE_SLOTS = 256,	    /* perfect hash of the interfaces' indexes */
	FW_GUARD_PORTS = 8,	    /* TCP ports that the lock-out guard keeps open */
	FW_GUARD_NETS = 64,	    /* networks from which it does */
};

/* Entry of the hash of interfaces. An ifindex of 0 is free. */
struct fw_iface {
	__u32 ifindex;
	__u32 number;
};

/* Which sources are taken for forged, by the way back to them: firewall.rp_filter. */
enum fw_rp_filter {
	FW_RP_OFF = 0,
	FW_RP_LOOSE = 1,	    /* those to which no route leads */
	FW_RP_STRICT = 2,	    /* and those to which the route leaves by another interface */
};

/*
 * Interfaces by which routes leave and that stand on guarded ones: VLAN devices, bridges, bonds and the like. By index
 * and by the tag that their frames have on the guarded interface (outer id, 0: none, FW_ANY_VLAN: whichever); the value
 * has a bit for each number of a guarded interface.
 */
struct fw_upper {
	__u32 ifindex;
	__u32 vlan;
};

enum fw_uppers_limits { FW_ANY_VLAN = 4096, FW_UPPERS = 16384 };

/* An IPv6 or IPv4-mapped network, host order. */
struct fw_net {
	__u64 addr[2];
	__u64 mask[2];
};

/* The lock-out guard. */
struct fw_guard {
	__u64 filter;		    /* bit port % 64 of each guarded port: most packets look no further */
	__u16 port[FW_GUARD_PORTS];
	__u8 ports;		    /* used entries of port */
	__u8 nets;
	__u8 pad[6];
	struct fw_net net[FW_GUARD_NETS];
};

struct fw_policy {
	__u32 generation;	    /* counts the swaps, from 1 */
	__u32 iface_multiplier;	    /* slot = ifindex * multiplier >> 24 */
	__u8 enforce;		    /* 0: mode = "alert", nothing is dropped */
	__u8 drop_unmatched;	    /* default_policy = "drop" */
	__u8 drop_unparsable;
	__u8 stateful;
	__u8 dhcp;		    /* DHCP answers to this host always pass */
	__u8 flows_open;	    /* the flow cache holds answers of this generation only; set last */
	__u8 write_meta;	    /* a rule mirrors: what passes takes struct xdp_meta along */
	__u8 rp_filter;		    /* enum fw_rp_filter */
	__u8 next_hop;		    /* records say which way the packet goes */
	__u8 flow_turn;		    /* the flow cache forgets in two turns of 2^flow_turn ticks, see flow_set() */
	__u8 pad[6];
	struct fw_guard guard;
	struct fw_iface iface[FW_IFACE_SLOTS];
};

/* One generation of the firewall. The agent writes the idle one and makes it live by one store to fw_control.active. */
struct fw_tables {
	struct fw_policy policy;
	struct fw_family family[2];  /* IPv4, IPv6 */
	struct fw_v4 v4;
	struct fw_v6 v6;
};

struct fw_control {
	__u32 active;		    /* which of the two generations is live: 0 or 1 */
	__u32 nothing;		    /* always 0, which the verifier cannot know; see forget_path() */
	__u32 pad[14];
};

/* ---- the flow cache (include/flows.h): written by xdp_firewall, emptied by the agent at each swap ---- */

enum fw_flow_limits {
	FW_FLOW_SETS = 16384,	    /* of IPv4 for a CPU, at most, and half as many of IPv6; a power of two, at least 4 */
	FW_FLOW_WAYS = 4,
};

/* A flow and the answer to it; the word holds everything but the addresses, which are as they stand on the wire. */
struct fw_flow_v4 {
	__u64 addresses;
	__u64 word;
};

struct fw_flow_v6 {
	__u64 src[2], dst[2];
	__u64 word;
	__u64 pad[3];
};

/* Where a flow may stand. */
struct fw_flow_set_v4 {
	struct fw_flow_v4 way[FW_FLOW_WAYS];
};

struct fw_flow_set_v6 {
	struct fw_flow_v6 way[FW_FLOW_WAYS];
};

/* ---- verdicts ---- */

/* What decided. Also the second half of the counters' index. */
enum fw_reason {
	FW_BY_RULE = 0,
	FW_BY_POLICY = 1,	    /* no rule matched */
	FW_BY_STATE = 2,	    /* no rule matched; it answers a connection that this host opened */
	FW_BY_EXCEPTION = 3,	    /* ARP, neighbour discovery, DHCP, link control, lock-out guard */
	FW_BY_PARSER = 4,	    /* could not be parsed */
	FW_BY_FRAGMENT = 5,	    /* follows its first fragment */
	FW_BY_RPFILTER = 6,	    /* would pass, but its source is forged */
	FW_BY_BLOCKED_FLOW = 7,	    /* the agent has blocked its flow: include/verdicts.h */
	FW_BY_BLOCKED_ADDRESS = 8,  /* or its source or destination */
	FW_REASONS = 9,
};

enum fw_verdict {
	FW_PASS = 0,
	FW_DROP = 1,
	FW_WOULD_DROP = 2,	    /* passed because mode = "alert" */
	FW_VERDICTS = 3,
};

/* Why a packet could not be parsed. */
enum fw_unparsable {
	FW_PARSED = 0,
	FW_SHORT_ETHERNET = 1,
	FW_VLAN_DEPTH = 2,	    /* more than two tags */
	FW_NOT_IP = 3,
	FW_BAD_IPV4 = 4,	    /* version, header length or total length */
	FW_BAD_IPV6 = 5,
	FW_EXTENSIONS = 6,	    /* too many extension headers, or one that is cut off or out of place */
	FW_SHORT_TRANSPORT = 7,	    /* TCP, UDP or ICMP header cut off, or TCP data offset below 5 */
	FW_TINY_FRAGMENT = 8,	    /* a fragment that could split or rewrite the transport header (RFC 1858, 3128) */
	FW_STRAY_FRAGMENT = 9,	    /* no first fragment was seen */
	FW_OVERLAP_FRAGMENT = 10,   /* a second first fragment with another transport header (RFC 5722) */
	FW_UNPARSABLE = 11,
};

/* State of a packet's connection, as a rule's state names it; 255 when none was looked up. */
enum fw_state {
	FW_NEW = 0,
	FW_ESTABLISHED = 1,
	FW_RELATED = 2,
	FW_INVALID = 3,
	FW_STATE_UNKNOWN = 255,
};

/* ---- counters, per CPU ---- */

/* Counters of a rule, or of a reason at FW_SLOTS + reason: what every packet writes, four to a cache line. */
struct fw_rule_count {
	__u64 packets;		    /* in units of FW_PACKET; the rest is the while of the last one, see enum fw_while */
	__u64 bytes;
};

/* What is noted of it once in a while. */
struct fw_rule_note {
	__u64 last_jiffies;	    /* jiffies64 of the first match in the last while with one; 0 is never */
	__u32 told_jiffies;	    /* low half of jiffies64 at the last event */
	__u32 told_packets;	    /* low half of packets at the last event, in units of one */
};

/*
 * A while has 2^4 ticks of the kernel's clock. A counter has 12 bits of its number: a rule that is hit by cached flows in
 * nothing but whiles that many apart, 65 seconds or more, is noted late.
 */
enum fw_while { FW_WHILE_SHIFT = 4, FW_PACKET = 4096 };

enum fw_counts { FW_RULE_COUNTS = FW_SLOTS + 16, FW_VERDICT_COUNTS = FW_REASONS * FW_VERDICTS };

/* Counters of an interface, at reason * FW_VERDICTS + verdict. */
struct fw_iface_count {
	__u64 packets[FW_VERDICT_COUNTS];
	__u64 bytes[FW_VERDICT_COUNTS];
};

/* All that a CPU counts of rules, reasons and interfaces. */
struct fw_cpu_counts {
	struct fw_rule_count rule[FW_RULE_COUNTS];
	struct fw_rule_note note[FW_RULE_COUNTS];
	struct fw_iface_count iface[FW_IFACES];
};

/* Losses of the ring buffer, and what could not be parsed by reason. */
struct fw_misc_count {
	__u64 events;		    /* events written */
	__u64 ring_full;	    /* events lost: no room */
	__u64 unparsable[FW_UNPARSABLE];
	__u64 conn_full;	    /* connections that could not be stored */
};

/* ---- events ---- */

struct fw_event {
	__u64 boot_ns;		    /* CLOCK_BOOTTIME */
	__u64 src[2];		    /* host order, high half first; IPv4 in the low 32 bits of src[1] */
	__u64 dst[2];
	__u32 ifindex;
	__u32 packets;		    /* how many packets this event stands for */
	__u32 bytes;		    /* length of this packet's frame */
	__u32 generation;
	__u16 slot;		    /* of the rule, with FW_BY_RULE and FW_BY_FRAGMENT */
	__u16 src_port;
	__u16 dst_port;
	__u16 vlan;
	__u8 family;		    /* 4 or 6; 0 when not parsed so far */
	__u8 protocol;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 verdict;
	__u8 reason;
	__u8 state;
	__u8 unparsable;
	__u8 next_hop_family;	    /* 4 or 6; 0: not asked for, or the packet is not forwarded */
	__u8 pad[2];
	__u32 out_ifindex;	    /* by which it leaves */
	__u64 next_hop[2];	    /* like src: a gateway, or the destination */
};

/* ---- connections: written by tc_egress, read by xdp_firewall ---- */

struct conn_key {
	__u64 local[2];		    /* host order; the sender on egress, the receiver on ingress */
	__u64 remote[2];
	__u16 local_port;	    /* ICMP echo: the identifier, in both */
	__u16 remote_port;
	__u8 protocol;
	__u8 family;
	__u8 pad[2];
};

enum conn_origin { CONN_OPENED_HERE = 0, CONN_OPENED_THERE = 1 };
enum conn_phase { CONN_OPENING = 0, CONN_OPEN = 1, CONN_CLOSING = 2, CONN_PHASES = 3 };

struct conn {
	__u64 last_jiffies;
	__u32 generation;	    /* of the rules that judged it last; 0: none so far */
	__u8 origin;
	__u8 phase;		    /* TCP; others go from OPENING to OPEN when both sides have spoken */
	__u8 pad[2];
};

/* ---- fragments ---- */

struct frag_key {
	__u64 src[2];
	__u64 dst[2];
	__u32 id;
	__u8 protocol;		    /* IPv4 only: RFC 8200 reassembles by addresses and id */
	__u8 family;
	__u16 vlan;
};

struct frag {
	__u64 last_jiffies;
	__u64 transport;	    /* ports and flags of the first fragment: a second one must agree */
	__u32 generation;
	__u32 answer;		    /* enum fw_answer */
	__u8 reason;
	__u8 drop;
	__u8 broken;		    /* a second first fragment disagreed */
	__u8 pad[5];
};

/* ---- rate limits: rules are written by the agent, buckets by xdp_ratelimit ---- */

enum rl_algorithm {
	RL_TOKEN_BUCKET = 0,
	RL_LEAKY_BUCKET = 1,
	RL_FIXED_WINDOW = 2,
	RL_SLIDING_WINDOW = 3,
	RL_SYN_COOKIE = 4,	    /* of SYNs, above a threshold: see bpf/xdp_syncookie.bpf.c */
};

/* A limit as the arithmetic takes it: so many units (packets or bits) a second, and a burst. */
struct rl_limit {
	__u64 scale;		    /* time that a unit takes, in 2^-16 ns, times 2^shift */
	__u64 depth;		    /* time that the burst takes, in 2^-16 ns; below 2^62 */
	__u64 per_window;	    /* units in a window of a second; below 2^40 */
	__u32 shift;		    /* below 64 */
	__u32 window;		    /* ticks of the kernel's clock in a window */
};

/* Whose packets share a bucket. */
enum rl_scope {
	RL_PER_IP = 0,		    /* source address, or its prefix */
	RL_PER_FLOW = 1,	    /* addresses, ports and protocol */
	RL_PER_DST = 2,		    /* destination address */
	RL_GLOBAL = 3,		    /* all that match the rule */
};

/* What happens to a packet over the limit. */
enum rl_action {
	RL_DROP = 0,
	RL_PASS = 1,		    /* counted and told only */
	RL_BLOCK = 2,		    /* dropped, and all of its bucket for block_ticks */
};

/* A rule as a packet that matches it sees it; the way to it is the firewall's (struct fw_tables). */
struct rl_rule {
	struct rl_limit limit;
	__u64 block_ticks;
	__u32 instance;		    /* the rule's own number, 1 to 2^24 - 1: buckets of a deleted rule are nobody's */
	__u32 threshold;	    /* RL_SYN_COOKIE: SYNs in a window of a second that go on; the limit is that of a source */
	__u8 algorithm;
	__u8 scope;
	__u8 action;
	__u8 bits;		    /* a packet costs its bits, else 1 */
	__u8 fine;		    /* time in nanoseconds; else in ticks, which is enough for bursts of ten ticks or more */
	__u8 prefix;		    /* of an IPv6 address: how many bits of it count */
	__u8 hold;		    /* a bucket may be forgotten when it was silent for 2^hold whiles */
	__u8 pad[9];
};

/* Beside the tables of a generation. */
struct rl_rules {
	__u32 any[2];		    /* IPv4, IPv6: enum fw_answer of every packet, when the rules look at no field */
	__u32 ask[2];		    /* else 1 here */
	__u32 cookies;		    /* 1: some rule answers SYNs with cookies */
	__u32 pad[11];
	struct rl_rule rule[FW_SLOTS];
};

enum rl_limits {
	RL_WAYS = 8,
	RL_WHILE_BITS = 24,	    /* of rl_bucket.seen: the while, and then 5 bits of hold */
};

/*
 * A bucket, two to a cache line: all that most packets need of it. id of 0 is free. For other scopes than RL_PER_FLOW the
 * low byte of id is the family, and key the address of IPv4 or the high half of IPv6's: then most keys are whole.
 */
struct rl_bucket {
	__u64 id;		    /* instance of the rule, then with RL_PER_FLOW protocol and ports */
	__u64 key;		    /* the first word of struct rl_key */
	__u64 word;		    /* see include/buckets.h */
	__u32 start;		    /* tick in which it was made */
	__u32 seen;		    /* while in which it was used last, hold of its rule; top bit: blocked, see rl_back */
};

struct rl_set {
	struct rl_bucket way[RL_WAYS];
};

/* The rest of a bucket: longer keys, the second word of sliding windows, and what happened when it was over its limit. */
struct rl_back {
	__u64 key[3];
	__u64 word;
	__u32 dropped;		    /* since it was made, or would have been; wraps */
	__u32 told;		    /* of them, at the last record */
	__u32 told_tick;
	__u32 blocked_until;	    /* tick */
};

/* What tells buckets apart: the address that the scope looks at, or source and destination, IPv4 as ::ffff:0:0/96. */
struct rl_key {
	__u64 id;
	__u64 word[4];
};

/* By slot of the rule: the bucket of all packets that have no other. */
struct rl_common {
	struct rl_bucket bucket;
	struct rl_back back;
	__u64 pad[6];
};

/* What belongs to the whole host. */
struct rl_host {
	__u64 tick_zero_ns;	    /* CLOCK_MONOTONIC at tick 0, modulo 2^64; written once by start_expiry */
	__u64 expired;		    /* buckets that the timer took away */
	__u32 cookies_usable;	    /* 1: this host's stack takes cookies, and xdp_syncookie runs; written by the agent */
	__u32 cookies_until;	    /* tick up to which a rule answers with cookies */
	__u64 pad[5];
};

struct rl_rule_count {
	__u64 passed, passed_bytes;
	__u64 dropped, dropped_bytes; /* over the limit; with RL_PASS they passed */
};

/* All that a CPU counts. */
struct rl_cpu_counts {
	struct rl_rule_count rule[FW_SLOTS];
	__u64 made;		    /* buckets */
	__u64 replaced;		    /* of them, by taking one that was silent */
	__u64 crowded;		    /* packets that found no room, and went by their rule's common bucket */
	__u64 contended;	    /* packets that gave up on a bucket that other CPUs kept changing: over the limit */
	__u64 events;
	__u64 ring_full;	    /* events lost */
	__u64 pad[2];
};

struct rl_event {
	__u64 boot_ns;
	__u64 src[2];		    /* host order, high half first; IPv4 in the low 32 bits of src[1] */
	__u64 dst[2];
	__u32 ifindex;
	__u32 packets;		    /* over the limit since the last event of this bucket, this one included */
	__u32 bytes;		    /* length of this packet's frame */
	__u32 generation;
	__u16 slot;
	__u16 src_port;
	__u16 dst_port;
	__u16 vlan;
	__u8 family;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 action;		    /* enum rl_action */
	__u8 common;		    /* 1: the rule's common bucket */
	__u8 pad[3];
};

/* ---- SYN cookies: asked for by xdp_ratelimit, made and checked by xdp_syncookie ---- */

/* From xdp_ratelimit to xdp_syncookie, for the packet at hand; and the clocks of xdp_syncookie, by CPU. */
struct syn_order {
	__u16 per_source;	    /* answers to a source in a second */
	__u8 prefix;		    /* of an IPv6 source: how many bits of it count */
	__u8 active;		    /* cookies are in use: acknowledgements without a connection have to carry one */
	__u32 tick;		    /* in which the rest was reckoned: divisions cost more than all else but the cookie */
	__u32 second;		    /* number of the second */
	__u32 milliseconds;	    /* of CLOCK_MONOTONIC */
	__u32 epoch;		    /* of SYN_EPOCH_SECS; see xdp_syncookie */
	__u32 pad;
};

/* What this host's TCP makes of a connection, in its own settings; written by the agent. */
struct syn_host {
	__u64 tick_zero_ns;	    /* CLOCK_MONOTONIC at tick 0, modulo 2^64 */
	__u32 timestamps;	    /* 1: net.ipv4.tcp_timestamps is 2, without an offset that nobody else knows */
	__u32 window_scaling;	    /* net.ipv4.tcp_window_scaling */
	__u32 sack;		    /* net.ipv4.tcp_sack */
	__u32 receive_max;	    /* bytes: the greater one of net.ipv4.tcp_rmem[2] and net.core.rmem_max */
	__u32 window_signed;	    /* net.ipv4.tcp_workaround_signed_windows */
	__u32 watched_since;	    /* tick from which on the ends of connections are noted */
	__u32 pad[8];
};

/* An interface on which SYNs may be answered, by its index. */
struct syn_iface {
	__u8 mac[6];
	__u16 pad;
};

enum syn_service_state {
	SYN_NOBODY = 0,		    /* nobody listens there on this host */
	SYN_LISTENER = 1,
	SYN_CONNECTION = 2,	    /* the packet at hand belongs to a connection that exists, or has just ended */
	SYN_REFUSED = 3,	    /* there is a listener that takes no more connections */
};

/* Where SYNs go to: what was found out about an address and port within the last second. By CPU. */
struct syn_service {
	__u64 dst[2];		    /* as in struct packet */
	__u32 ifindex;
	__u16 port;
	__u8 family;
	__u8 state;		    /* enum syn_service_state */
	__u8 mac[6];
	__u16 mss;		    /* largest segment that this host takes, from the MTU */
	__u8 wscale;
	__u8 pad;
	__u16 window[2];	    /* the first receive window, bytes, without time stamps and with them */
	__u32 until;		    /* tick */
	__u32 pad2[5];
};

/* What became of a SYN, or of an acknowledgement while cookies are in use. */
enum syn_result {
	SYN_ANSWERED = 0,	    /* SYN: by a SYN-ACK with a cookie */
	SYN_LIMITED = 1,	    /* SYN: its source had enough answers in this second; dropped */
	SYN_FULL = 2,		    /* SYN: the listener takes no more connections; dropped */
	SYN_NO_LISTENER = 3,	    /* SYN: nobody of this host listens; passed */
	SYN_NOT_MINE = 4,	    /* SYN: not to this interface's MAC address, or not to be answered here; passed */
	SYN_KNOWN = 5,		    /* SYN: of a connection that exists or has just ended, which TCP has to see; passed */
	SYN_ACCEPTED = 6,	    /* acknowledgement: carries a cookie of this host; passed */
	SYN_FORGED = 7,		    /* acknowledgement: neither a cookie nor a connection; dropped */
	SYN_RESULTS = 8,
};

struct syn_counts {
	__u64 result[SYN_RESULTS];
};

enum syn_limits {
	SYN_SERVICES = 256,	    /* remembered, by CPU */
	SYN_SOURCES = 65536,	    /* cells of what sources were answered */
	SYN_FLOWS = 131072,	    /* cells of flows; see xdp_syncookie */
	SYN_EPOCH_SECS = 8,	    /* unit of their time */
};

/* ---- the chain of XDP programs ---- */

/* Slots of the map xdp_next (include/chain.h). An empty one is passed over. */
enum xdp_chain {
	CHAIN_RATELIMIT = 0,	    /* for what xdp_firewall passes */
	CHAIN_SYNCOOKIE = 1,	    /* for SYNs and acknowledgements that xdp_ratelimit asks about */
	CHAIN_STEER = 2,	    /* for what all others pass: the last one */
	CHAIN_SLOTS = 4,
};

/* ---- XDP -> TC ---- */

enum xdp_meta_limits { XDP_META_MAGIC = 0x45425331 };

/* Stands before the frame of every packet that xdp_firewall passes, when a TC program reads it. */
struct xdp_meta {
	__u32 magic;
	__u16 slot;		    /* of the rule that matched; FW_SLOTS + reason when none did */
	__u8 verdict;
	__u8 reason;
	__u16 l3_offset;	    /* from the start of the frame */
	__u16 l4_offset;	    /* 0: no transport header in this packet */
	__u8 family;
	__u8 protocol;
	__u16 vlan;
};

/* ---- steering: counted by xdp_steer, by the CPU that packets are sent to ---- */

enum steer_limits { STEER_TARGETS = 1024 }; /* CPUs among which flows are spread; a power of two */

struct steer_count {
	__u64 steered;		    /* sent to that CPU, by the one that counts */
	__u64 arrived;		    /* there */
};

/* ---- mirroring: written by the agent, read by tc_mirror ---- */

enum mirror_limits { MIRROR_ABSENT = 0x7fffffff };

/* Which rule's packets are sent where. */
struct mirror_table {
	__u32 active;		    /* 1: every packet should have metadata */
	__u32 pad;
	__u32 monitor[FW_SLOTS];    /* index of the interface; 0: none is asked for, MIRROR_ABSENT: it is not there */
};

/* Why a packet that passed has no copy, or, without metadata, may have none. */
enum mirror_loss {
	MIRROR_NO_METADATA = 0,	    /* the driver had no room for it, or it was lost on the way */
	MIRROR_NO_INTERFACE = 1,    /* the monitor's is not there */
	MIRROR_MTU = 2,		    /* longer than the monitor's MTU */
	MIRROR_CLONE_FAILED = 3,    /* no memory, or the monitor's interface did not take it */
	MIRROR_LOSSES = 4,
};

struct mirror_count {
	__u64 packets;		    /* frames: GRO may have put several together */
	__u64 bytes;
	__u64 lost[MIRROR_LOSSES];
};

/* ---- flow inspection: tc_ids, include/flow_budget.h ---- */

enum ids_limits {
	IDS_WAYS = 8,
	IDS_FRAME_MAX = 65600,	    /* bytes of a frame in a record: a super-packet of 64 KiB and its link header */
	IDS_HEAD = 64,		    /* bytes of payload that the signatures look at */
	IDS_EMPTY_PACKETS = 16,	    /* of TCP, beside one for each IDS_EMPTY_SHARE bytes of stream_depth */
	IDS_EMPTY_SHARE = 1024,
	IDS_HEARTBEAT_SECS = 10,
	IDS_SILENT_SECS = 60,
	IDS_REPLAY_TICK_SHIFT = 20, /* a replay's ticks are 2^20 nanoseconds of the capture's time */
	IDS_VXLAN_PORT = 4789,
};

enum ids_direction { IDS_INGRESS = 0, IDS_EGRESS = 1, IDS_DIRECTIONS = 2 };

/* What a flow speaks by the first bytes of its payload: include/l7.h. */
enum ids_signature {
	IDS_UNKNOWN = 0,
	IDS_HTTP1 = 1,
	IDS_HTTP2 = 2,
	IDS_TLS = 3,
	IDS_SSH = 4,
	IDS_SMTP = 5,
	IDS_FTP = 6,
	IDS_SMB = 7,		    /* 1, 2 and 3 */
	IDS_DNS = 8,		    /* over TCP */
	IDS_SIGNATURES = 9,
};

/* Of a record. */
enum ids_flag {
	IDS_LOST = 1,		    /* an earlier record of this direction found no room: among the unseen packets are such */
	IDS_HEADERS = 2,	    /* the budget is spent: the frame ends before its payload */
	IDS_TRUNCATED = 4,	    /* the frame is longer than IDS_FRAME_MAX */
	IDS_NO_FLOW = 8,	    /* the packet could not be parsed, so no flow was looked up */
	IDS_FLAGS = 15,
};

/* In front of each frame in the ring buffer of tc_ids. */
struct ids_record {
	__u64 boot_ns;		    /* CLOCK_BOOTTIME; in a replay the capture's time */
	__u64 socket_cookie;	    /* 0: none */
	__u64 cgroup_id;	    /* 0: not known */
	__u64 unseen_packets;	    /* of this flow and direction, since its last record, this packet not included */
	__u64 unseen_bytes;	    /* of their frames */
	__u32 ifindex;
	__u32 pair;		    /* keyed hash of the two addresses, the same in both directions */
	__u32 length;		    /* of the frame as it passed */
	__u32 copied;		    /* bytes of it that follow */
	__u16 vlan;		    /* id of the tag that the kernel took out of the frame; 0: none */
	__u8 direction;		    /* enum ids_direction */
	__u8 signature;		    /* enum ids_signature */
	__u8 flags;		    /* enum ids_flag */
	__u8 pad[3];
};

/*
 * A direction of a flow, what its packets past the budget need in one cache line. The key is addresses (both of IPv4;
 * of IPv6 a mix of them, and all of them in ids_back) and word; a word of 0 is free.
 */
struct ids_entry {
	__u64 addresses;
	__u64 word;		    /* see struct seen */
	__u64 unseen_packets;	    /* since the last record */
	__u64 unseen_bytes;
	__u64 spent;		    /* of the budget: bytes or packets */
	__u32 empty;		    /* packets of TCP without payload that were copied */
	__u32 last_tick;	    /* of the last packet */
	__u32 told_tick;	    /* of the last record */
	__u32 place;		    /* where it was seen last: index of the interface, and on top of it 1 for egress */
	__u8 signature;
	__u8 flags;		    /* enum ids_entry_flag */
	__u8 pad[6];
};

enum ids_entry_flag { IDS_ENTRY_LOST = 1, IDS_ENTRY_READ = 2 /* the signatures have seen its payload */ };

/* What only records need. */
struct ids_back {
	__u64 src[2], dst[2];	    /* of IPv6, as they stand on the wire */
	__u64 told_packets;	    /* handed over, or told as unseen */
	__u64 told_bytes;
	__u64 pad[2];
};

/* Where a record is put together, by CPU: it is copied into the ring buffer whole. */
struct ids_scratch {
	struct ids_record record;
	__u8 frame[IDS_FRAME_MAX];
	__u8 head[IDS_HEAD];
	struct ids_entry no_entry;  /* of a packet that has none */
	struct ids_back no_back;
};

/* Why a packet that should have been recorded was not. */
enum ids_loss {
	IDS_RING_FULL = 0,
	IDS_PRESSURE = 1,	    /* the ring is 75 % full: new flows stop first */
	IDS_UNREADABLE = 2,	    /* the kernel did not give the packet's bytes */
	IDS_LOSSES = 3,
};

/* Of a CPU and a direction. packets = records + past_budget + sampled_out + twice + all of lost and blocked. */
struct ids_count {
	__u64 packets;		    /* of IP that were looked at */
	__u64 bytes;
	__u64 records;		    /* delivered to the ring buffer */
	__u64 copied_bytes;	    /* of frames in them */
	__u64 lost[IDS_LOSSES];
	__u64 past_budget;
	__u64 sampled_out;
	__u64 twice;		    /* forwarded, and looked at when they arrived */
	__u64 blocked_flow, blocked_address; /* dropped */
	__u64 truncated;	    /* records of IDS_TRUNCATED */
	__u64 no_flow;		    /* records of IDS_NO_FLOW */
	__u64 made;		    /* entries */
	__u64 evicted;		    /* of them, by taking another flow's, which was silent the longest */
};

struct ids_counts {
	struct ids_count direction[IDS_DIRECTIONS];
};

enum ids_sampling { IDS_SAMPLE_ALL = 0, IDS_SAMPLE_RANDOM = 1, IDS_SAMPLE_HASH = 2 };

/* ---- blocks: written by the agent, honoured by xdp_firewall and tc_ids, include/verdicts.h ---- */

/* A flow, whichever way: the end that is lower (address, then port) first. Host order, as in struct packet. */
struct block_flow {
	__u64 low[2], high[2];
	__u16 low_port, high_port;
	__u16 vlan;		    /* outer id; 0: untagged */
	__u8 protocol;
	__u8 family;
};

/* An address, in whatever VLAN. IPv4 is mapped into IPv6. */
struct block_address {
	__u64 address[2];
};

struct block {
	__u64 until_s;		    /* seconds since boot; 0: for ever */
	__u64 packets;		    /* that were dropped for it */
};

/* Who must not be blocked, and whether anything is. */
struct block_policy {
	__u32 flows, addresses;	    /* entries of the tables: most hosts block nothing */
	__u32 dhcp;		    /* 1: DHCP between this host and its server always passes */
	__u32 pad;
	struct fw_guard guard;
};

/* ---- explain ---- */

/*
 * A packet run by BPF_PROG_TEST_RUN with the secret in front of it (as metadata) is judged, but neither counted, told
 * nor remembered; the answer is written over the secret. The secret is drawn anew at each load, so no wire can ask.
 */
struct fw_question {
	__u64 secret[2];
	__u64 pad[2];
};

struct fw_answered {
	__u32 generation;
	__u32 answer;		    /* enum fw_answer */
	__u8 verdict;
	__u8 reason;
	__u8 state;
	__u8 unparsable;
	__u8 exception;		    /* enum fw_exception */
	__u8 iface;		    /* number */
	__u8 family;
	__u8 protocol;
	__u64 boot_ns;
	__u64 jiffies;
};

/* What would be charged for a packet, written over the metadata in front of it; see explain_limit. */
struct rl_answered {
	__u32 answer;		    /* enum fw_answer: FW_NO_MATCH when no limit is meant for the packet */
	__u8 place;		    /* enum rl_place */
	__u8 over;		    /* the packet would be over the limit */
	__u8 blocked;
	__u8 exempt;		    /* and would pass all the same: DHCP, lock-out guard */
	__u64 at;		    /* number of the bucket, with RL_OWN: set * RL_WAYS + way */
	__u64 tick;
	__u64 pad;
};

/* Which bucket. */
enum rl_place {
	RL_NEW = 0,		    /* one that this packet would make */
	RL_OWN = 1,
	RL_COMMON = 2,
};

enum fw_exception {
	FW_NO_EXCEPTION = 0,
	FW_LINK_CONTROL = 1,	    /* ARP, LLDP, LACP, EAPOL */
	FW_NEIGHBOUR = 2,	    /* RFC 4861 with hop limit 255, MLD queries */
	FW_DHCP = 3,
	FW_GUARD = 4,		    /* lock-out guard */
};

_Static_assert(sizeof(struct fw_leaf) == 64, "a leaf is a cache line");
_Static_assert(sizeof(struct fw_flow_set_v4) == 64, "a cache line");
_Static_assert(sizeof(struct fw_flow_v6) == 64, "a cache line");
_Static_assert(sizeof(struct fw_near) == 64, "a cache line");
_Static_assert(sizeof(struct fw_row) == 512, "64 words");
_Static_assert(sizeof(struct fw_event) == 96, "no hidden padding");
_Static_assert(sizeof(struct conn_key) == 40, "no hidden padding");
_Static_assert(sizeof(struct conn) == 16, "no hidden padding");
_Static_assert(sizeof(struct frag_key) == 40, "no hidden padding");
_Static_assert(sizeof(struct frag) == 32, "no hidden padding");
_Static_assert(sizeof(struct rl_rule) == 64, "a cache line");
_Static_assert(sizeof(struct rl_bucket) == 32, "two to a cache line");
_Static_assert(sizeof(struct rl_back) == 48, "no hidden padding");
_Static_assert(sizeof(struct rl_common) == 128, "no two in one cache line");
_Static_assert(sizeof(struct rl_event) == 72, "no hidden padding");
_Static_assert(sizeof(struct syn_order) == 24, "no hidden padding");
_Static_assert(sizeof(struct syn_host) == 64, "no hidden padding");
_Static_assert(sizeof(struct syn_service) == 64, "a cache line");
_Static_assert(sizeof(struct xdp_meta) == 16, "a multiple of 4, at most 32");
_Static_assert(sizeof(struct mirror_table) % 8 == 0, "mapped into the agent");
_Static_assert(sizeof(struct ids_record) == 64, "a cache line");
_Static_assert(sizeof(struct ids_entry) == 64, "a cache line");
_Static_assert(sizeof(struct ids_back) == 64, "a cache line");
_Static_assert(sizeof(struct ids_scratch) % 64 == 0, "no two in one cache line");
_Static_assert(sizeof(struct block_flow) == 40, "no hidden padding");
_Static_assert(sizeof(struct block_policy) % 8 == 0, "mapped into the agent");
_Static_assert(sizeof(struct fw_question) == 32, "metadata is at most 32 bytes before kernel 6.1");
_Static_assert(sizeof(struct fw_answered) == 32, "written over the question");
_Static_assert(sizeof(struct rl_answered) == 32, "written over a question");
