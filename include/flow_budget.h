/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How much of each flow is copied to the agent, by direction. src/flow/budget.rs keeps the same budget for captures
 * that are read without the kernel; these are the rules of both.
 *
 * What a direction is told from others by: source, destination, protocol, ports, and two VLAN ids, outer and inner,
 * as they were on the wire. Ports are those of TCP and UDP; other protocols have none.
 *
 * A packet that is no IP is not looked at. One of IP that cannot be parsed (include/parse.h) is recorded whole,
 * belongs to no flow and spends nothing. All others, in the order in which they pass, after sampling has chosen them:
 *
 * - Fragments, whichever, and what carries other packets (IPv4 and IPv6 in IP, GRE, UDP to the port of VXLAN) have no
 *   budget: they are recorded whole. All fragments of a protocol between two addresses are one flow without ports.
 * - TCP: a SYN (with or without ACK) starts the direction anew: nothing is spent, nothing is known of its protocol. A
 *   packet with payload is within the budget while less than stream_depth bytes are spent; it then spends the payload
 *   that its IP header claims, so the last one may go beyond (of each CPU, if several see the direction at the same
 *   time). One without payload is within the budget while fewer
 *   than IDS_EMPTY_PACKETS + stream_depth / IDS_EMPTY_SHARE of them were recorded: acknowledgements of a long
 *   download must not be recorded for ever.
 * - All else, UDP first: a packet is within the budget while fewer than udp_packets are spent; it then spends one.
 *   After IDS_SILENT_SECS without a packet the direction starts anew.
 *
 * A packet within the budget is recorded whole. Past it, those with SYN, FIN or RST, and the first one that comes
 * IDS_HEARTBEAT_SECS or more after the direction's last record, are recorded with their headers only (of TCP with
 * options, of UDP 8 bytes, of others none), and spend nothing. Everything else is added to unseen packets and bytes
 * (of frames, without tags that the kernel took out), which the next record of the direction carries and clears.
 *
 * A packet that should be recorded and finds no room spends nothing, is added to the unseen ones, and sets the lost
 * flag, which the next record carries and clears.
 *
 * The clock is the kernel's jiffies; in a replay it is the capture's, in units of 2^IDS_REPLAY_TICK_SHIFT
 * nanoseconds. Silence and heartbeats are differences of 32 bits of it. Which entry a direction has, is the table's:
 * sets of IDS_WAYS, the one that was silent the longest is replaced, and counted. A direction whose entry was
 * replaced starts anew.
 *
 * A packet that is forwarded arrives and leaves: it is looked at when it arrives, if the interface is inspected, and
 * then not again.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"

/* Entries, a power of two, and 63 less the logarithm of their sets. */
const volatile __u64 ids_entries = IDS_WAYS;
const volatile __u32 ids_set_shift = 63;

/* Odd numbers drawn at each load: nobody can aim at a set, or know who meets in a worker. */
const volatile __u64 ids_secret[4];

/* The budget: bytes of TCP, its packets without payload, and packets of everything else. */
const volatile __u64 stream_depth, empty_packets, udp_packets;

/* In ticks. */
const volatile __u32 heartbeat_ticks, silent_ticks;

/* A replay: the packet's time stamp is the clock. */
const volatile __u8 replaying;

/*
 * The entries, and what belongs to each beside it. The agent makes room for all before it loads the program.
 * Variables, not maps: the kernel's LRU table costs more than the rest of a packet's way.
 */
struct ids_entry ids_table[1] SEC(".bss.ids_table");
struct ids_back ids_backs[1] SEC(".bss.ids_backs");

/* Of ids_entry.word, from the low end: ports as they stand on the wire, or protocol and then 1 bit for fragments. */
enum ids_word {
	IDS_VLAN = 32,		/* 12 bits each: outer, inner */
	IDS_INNER_VLAN = 44,
	IDS_KIND = 56,		/* enum ids_kind */
	IDS_OF_FRAGMENTS = 1 << 8,
};

enum ids_kind { IDS_NO_KIND = 0, IDS_TCP = 2, IDS_UDP = 4, IDS_OTHER = 6, IDS_IPV6 = 1, IDS_CLAIMED = 255 };

enum ids_budget { BUDGET_NONE = 0, BUDGET_BYTES = 1, BUDGET_PACKETS = 2 };

enum { IDS_NO_ENTRY = -1 };

/* What tc_ids knows of a packet. */
struct seen {
	__u64 src[2], dst[2];	/* as they stand on the wire; of IPv4 in src[0] and dst[0] */
	__u64 addresses, word;	/* key of its entry; a word of 0: it belongs to no flow */
	__u64 at;		/* index of the entry, or IDS_NO_ENTRY */
	__u32 headers;		/* bytes of the frame before the payload */
	__u32 payload;		/* bytes of it, as the IP header claims */
	__u16 vlan;		/* id of the tag that the kernel took out */
	__u8 budget;		/* enum ids_budget */
	__u8 tcp_flags;
	__u32 tick;
};

/* TCP's flags that are recorded whatever the budget. */
enum { TCP_TELLS = TCP_SYN | TCP_FIN | TCP_RST };

static __always_inline __u64 mix(__u64 x)
{
	x ^= x >> 32;
	return x * 0xd6e8feb86659fd93ULL;
}

/* Keyed hash of one end of a flow, or of one address with a port of 0. */
static __always_inline __u64 end_hash(const __u64 *address, __u32 port)
{
	return mix(mix(address[0] * ids_secret[0] + address[1] * ids_secret[1]) + port * ids_secret[2]);
}

/* Keyed hash of two ends, the same whichever is first. */
static __always_inline __u32 both_hash(__u64 one, __u64 other)
{
	return mix((one + other) * ids_secret[3]) >> 32;
}

static __always_inline __u32 pair_hash(const struct seen *p)
{
	return both_hash(end_hash(p->src, 0), end_hash(p->dst, 0));
}

/* Fills in the key, by the ports as they stand on the wire, or what stands for them. */
static __always_inline void key_of(struct seen *p, bool ipv6, __u32 kind, __u32 ports, __u64 outer, __u64 inner)
{
	p->word = ports | outer << IDS_VLAN | inner << IDS_INNER_VLAN | (__u64)(kind + ipv6) << IDS_KIND;
	if (ipv6)
		p->addresses = (p->src[0] + p->dst[0] * ids_secret[1]) * ids_secret[0] +
			       (p->src[1] + p->dst[1] * ids_secret[3]) * ids_secret[2];
	else
		p->addresses = p->dst[0] << 32 | p->src[0];
}

static __always_inline __u64 key_hash(const struct seen *p)
{
	return mix(mix(p->addresses * ids_secret[2] + p->word) * ids_secret[3]);
}

static __always_inline struct ids_entry *entry_at(__u64 at)
{
	struct ids_entry *entries = ids_table;

	OPAQUE(entries); /* clang believes that there is one */
	return entries + (at & (ids_entries - 1));
}

static __always_inline struct ids_back *back_at(__u64 at)
{
	struct ids_back *backs = ids_backs;

	OPAQUE(backs);
	return backs + (at & (ids_entries - 1));
}

/* The i-th place that a flow takes if it can. */
static __always_inline __u64 place_of(__u64 hash, __u32 i)
{
	__u64 way = (hash & (IDS_WAYS - 1)) ^ i;

	return (hash >> 1 >> (ids_set_shift & 63)) * IDS_WAYS + way;
}

static __always_inline bool is_entry_of(__u64 at, const struct seen *p)
{
	const struct ids_entry *entry = entry_at(at);
	const struct ids_back *back;

	if (entry->word != p->word || entry->addresses != p->addresses)
		return false;
	if (!(p->word >> IDS_KIND & IDS_IPV6))
		return true;
	back = back_at(at);
	return !((back->src[0] ^ p->src[0]) | (back->src[1] ^ p->src[1]) | (back->dst[0] ^ p->dst[0]) |
		 (back->dst[1] ^ p->dst[1]));
}

/* The index of a flow's entry, or IDS_NO_ENTRY. */
static __always_inline __u64 find_entry(const struct seen *p)
{
	__u64 hash = key_hash(p);

#pragma clang loop unroll(full)
	for (__u32 i = 0; i < IDS_WAYS; i++) {
		__u64 at = place_of(hash, i);

		if (is_entry_of(at, p))
			return at;
	}
	return IDS_NO_ENTRY;
}

/*
 * Makes an entry in the place of the one that was silent the longest, or in a free one. IDS_NO_ENTRY when another CPU
 * was about it, too. Two CPUs that see the first two packets of a direction at once may make two; the second one is
 * never found.
 */
static __always_inline __u64 make_entry(const struct seen *p, struct ids_count *count)
{
	__u64 hash = key_hash(p), best = 0, at, old;
	struct ids_entry *entry;
	struct ids_back *back;

#pragma clang loop unroll(full)
	for (__u32 i = 0; i < IDS_WAYS; i++) {
		/* Silence, then the way, so that the verifier meets no branch; and earlier ways before later ones. */
		__u64 silent = *(volatile __u64 *)&(entry = entry_at(place_of(hash, i)))->word
				       ? (__u32)(p->tick - *(volatile __u32 *)&entry->last_tick)
				       : 1ULL << 32;
		__u64 score = silent << 8 | (IDS_WAYS - i);

		best = score > best ? score : best;
	}
	at = place_of(hash, (IDS_WAYS - (best & 0xff)) & (IDS_WAYS - 1));
	entry = entry_at(at);
	back = back_at(at);
	old = *(volatile __u64 *)&entry->word;
	if (old >> IDS_KIND == IDS_CLAIMED ||
	    __sync_val_compare_and_swap(&entry->word, old, (__u64)IDS_CLAIMED << IDS_KIND) != old)
		return IDS_NO_ENTRY;
	entry->addresses = p->addresses;
	entry->unseen_packets = entry->unseen_bytes = entry->spent = 0;
	entry->empty = 0;
	entry->last_tick = entry->told_tick = p->tick;
	entry->place = 0;
	entry->signature = IDS_UNKNOWN;
	entry->flags = 0;
	__builtin_memset(back, 0, sizeof(*back));
	if (p->word >> IDS_KIND & IDS_IPV6) {
		back->src[0] = p->src[0];
		back->src[1] = p->src[1];
		back->dst[0] = p->dst[0];
		back->dst[1] = p->dst[1];
	}
	/* An exchange is a full barrier: who sees the word sees the rest. */
	__sync_lock_test_and_set(&entry->word, p->word);
	count->made++;
	if (old)
		count->evicted++;
	return at;
}

/* Whether a packet is past its direction's budget. */
static __always_inline bool is_past(const struct ids_entry *entry, const struct seen *p)
{
	if (p->budget == BUDGET_BYTES)
		return !(p->tcp_flags & TCP_SYN) &&
		       (p->payload ? entry->spent >= stream_depth : entry->empty >= empty_packets);
	return p->budget == BUDGET_PACKETS && entry->spent >= udp_packets && p->tick - entry->last_tick < silent_ticks;
}

/* Whether a packet past the budget is recorded all the same, with its headers. */
static __always_inline bool is_told(const struct ids_entry *entry, const struct seen *p)
{
	return p->tcp_flags & TCP_TELLS || p->tick - entry->told_tick >= heartbeat_ticks;
}

/* A packet is not handed over. */
static __always_inline void leave_unseen(struct ids_entry *entry, __u32 bytes)
{
	__sync_fetch_and_add(&entry->unseen_packets, 1);
	__sync_fetch_and_add(&entry->unseen_bytes, bytes);
}

/* Starts the direction anew where the contract says so. */
static __always_inline void restart(struct ids_entry *entry, const struct seen *p)
{
	if (p->budget == BUDGET_BYTES ? !(p->tcp_flags & TCP_SYN) :
					p->budget == BUDGET_NONE || p->tick - entry->last_tick < silent_ticks)
		return;
	entry->spent = 0;
	entry->empty = 0;
	entry->signature = IDS_UNKNOWN;
	entry->flags &= ~IDS_ENTRY_READ;
}

/* A packet was recorded whole. Other CPUs may be at it with the same direction: nothing that was spent is forgotten. */
static __always_inline void spend(struct ids_entry *entry, const struct seen *p)
{
	if (p->budget == BUDGET_PACKETS)
		__sync_fetch_and_add(&entry->spent, 1);
	else if (p->budget == BUDGET_BYTES && p->payload)
		__sync_fetch_and_add(&entry->spent, p->payload);
	else if (p->budget == BUDGET_BYTES)
		__sync_fetch_and_add(&entry->empty, 1);
}
