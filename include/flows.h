/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The flow cache: in front of everything, what the rules said of a flow. Each CPU has its own, so nothing is locked and
 * nothing bounces between CPUs. How fast it is depends on how much memory the flows of a host take, so an IPv4 flow is
 * two words: its addresses, and one with everything else of it and the answer. An IPv6 flow has a cache line.
 *
 * All entries are of one generation, and within it rules and policy do not change their mind. At a swap the agent waits
 * until no packet is judged by the old one, empties the cache, and only then opens it for the new one
 * (fw_policy.flows_open). An answer to what this host opened is good for one tick of the kernel's clock: then its
 * connection is looked up again.
 *
 * A flow takes an entry only from one that was silent for a while. So a flood of new flows costs at most one write an
 * entry and while, and does not push out the flows that are busy.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"
#include "common_packet.h"

/*
 * IPv4 sets of a CPU, a power of two; there are half as many of IPv6. A machine with many CPUs gets fewer. Only CPUs below
 * flow_cpus have any: those that are online when the program is loaded; others judge without. None has when packets may
 * stand in several buffers.
 */
const volatile __u32 flow_sets = 4;
const volatile __u32 flow_cpus = 1;

/*
 * The sets, CPU after CPU. The agent makes room for all of them before it loads the program. They are variables, not
 * entries of maps: a lookup would pass the index through memory, which is the longest wait of a common packet's way.
 */
struct fw_flow_set_v4 flows_v4[1] SEC(".bss.flows_v4");
struct fw_flow_set_v6 flows_v6[1] SEC(".bss.flows_v6");

/* The answer. */
enum flow_answer {
	FLOW_SLOT_MASK = 0x3fff, /* slot of the rule, or FW_SLOTS + FW_BY_POLICY */
	FLOW_DENY = 1 << 14,	 /* dropped, if the mode is to enforce */
	FLOW_WHILE = 15,	 /* 2 bits: the while in which it was used last */
	FLOW_TICK_BITS = 16,
	FLOW_IS_STATE = 1 << 17, /* by state instead: passed in the tick whose low 16 bits stand in front */
};

/* The cache must not be asked for a flow that cannot be kept: it may look like an entry that is free. */
static __always_inline bool can_be_kept(const struct flow_key *key)
{
	return key->word >> FLOW_KIND & 3;
}

/*
 * The hash of a flow, by what is known of it first; packets that differ in the rest are told apart by the word. From its
 * upper half comes the flow's set, and from the two bits on top its way.
 */
static __always_inline __u64 flow_hash(__u64 addresses, __u64 word)
{
	__u64 hash = addresses ^ (__u32)word * 0x9e3779b97f4a7c15ULL;

	hash ^= hash >> 32;
	return hash * 0xd6e8feb86659fd93ULL;
}

static __always_inline __u64 flow_hash_v6(const struct flow_key *key)
{
	__u64 addresses = key->src[0] ^ (key->src[1] ^ key->dst[1] << 1) * 0xc2b2ae3d27d4eb4fULL ^ key->dst[0];

	return flow_hash(addresses, key->word);
}

/*
 * The first of a flow's two sets among those of a CPU; the other one is its neighbour. It moves with each turn of the
 * clock. A turn is 2^15 ticks (fw_policy.flow_turn), so that a tick of which an entry has the low 16 bits is not taken for
 * an earlier one, not before it has gone round all sets. It is half a second at most where answers depend on routes, which
 * may change: after two turns a flow is looked for in two other sets, and judged anew.
 */
static __always_inline __u64 flow_set(__u64 hash, __u64 sets, __u64 turn)
{
	return ((hash >> 32) + turn) & (sets - 1);
}

/*
 * A CPU's sets; cpu is below flow_cpus. The verifier of Linux 6.1 loses that bound in the product, unless it
 * comes from a mask.
 */
enum { FLOW_CPU_MASK = 0xfff };

static __always_inline struct fw_flow_set_v4 *sets_v4(__u64 cpu)
{
	struct fw_flow_set_v4 *sets = flows_v4;

	OPAQUE(sets); /* clang believes that there is one */
	return sets + (cpu & FLOW_CPU_MASK) * flow_sets;
}

static __always_inline struct fw_flow_set_v6 *sets_v6(__u64 cpu)
{
	struct fw_flow_set_v6 *sets = flows_v6;

	OPAQUE(sets);
	return sets + (cpu & FLOW_CPU_MASK) * (flow_sets / 2);
}

/* 0 when a word is of the flow with this key. */
static __always_inline __u64 other_flow(__u64 word, __u64 key)
{
	return (word ^ key) << (64 - FLOW_ANSWER);
}

static __always_inline __u64 differs_v4(const struct fw_flow_v4 *way, const struct flow_key *key)
{
	return other_flow(way->word, key->word) | (way->addresses ^ key->src[0]);
}

static __always_inline __u64 differs_v6(const struct fw_flow_v6 *way, const struct flow_key *key)
{
	return other_flow(way->word, key->word) | (way->src[0] ^ key->src[0]) | (way->src[1] ^ key->src[1]) |
	       (way->dst[0] ^ key->dst[0]) | (way->dst[1] ^ key->dst[1]);
}

/*
 * The i-th way that a flow takes if it can. Which of four ways holds a flow would be as good as random, and each wrong
 * guess costs a CPU more than all the rest.
 */
static __always_inline __u64 flow_way(__u64 hash, __u64 i)
{
	__u64 at = hash >> 62 ^ i;

	OPAQUE(at); /* clang knows that it is small, the verifier has to see it */
	return at & (FW_FLOW_WAYS - 1);
}

/* The word of a flow in a set, or NULL. */
static __always_inline __u64 *flow_in_v4(struct fw_flow_set_v4 *set, __u64 hash, const struct flow_key *key)
{
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < FW_FLOW_WAYS; i++) {
		struct fw_flow_v4 *way = &set->way[flow_way(hash, i)];

		if (!differs_v4(way, key))
			return &way->word;
	}
	return NULL;
}

static __always_inline __u64 *flow_in_v6(struct fw_flow_set_v6 *set, __u64 hash, const struct flow_key *key)
{
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < FW_FLOW_WAYS; i++) {
		struct fw_flow_v6 *way = &set->way[flow_way(hash, i)];

		if (!differs_v6(way, key))
			return &way->word;
	}
	return NULL;
}

/* In one of the two sets that it may stand in. */
static __always_inline __u64 *find_flow_v4(const struct flow_key *key, __u64 cpu, __u64 turn)
{
	__u64 hash = flow_hash(key->src[0], key->word), set = flow_set(hash, flow_sets, turn), *word;

	word = flow_in_v4(sets_v4(cpu) + set, hash, key);
	return word ? word : flow_in_v4(sets_v4(cpu) + (set ^ 1), hash, key);
}

static __always_inline __u64 *find_flow_v6(const struct flow_key *key, __u64 cpu, __u64 turn)
{
	__u64 hash = flow_hash_v6(key), set = flow_set(hash, flow_sets / 2, turn), *word;

	word = flow_in_v6(sets_v6(cpu) + set, hash, key);
	return word ? word : flow_in_v6(sets_v6(cpu) + (set ^ 1), hash, key);
}

/* The answer of an entry with the while of now in it. */
static __always_inline __u32 with_while(__u32 answer, __u64 now)
{
	return (answer & ~(3u << FLOW_WHILE)) | (now >> FW_WHILE_SHIFT & 3) << FLOW_WHILE;
}

/*
 * Whether a new flow may take an entry: free, or silent since the while before this one. One that was silent for very
 * long looks busy now and then, since its while comes round.
 */
static __always_inline bool is_idle(__u64 word, __u64 now)
{
	__u32 answer = word >> FLOW_ANSWER;

	if (!(word >> FLOW_KIND & 3))
		return true;
	if (answer & FLOW_IS_STATE)
		return (((__u32)now - answer) & 0xffff) > 2u << FW_WHILE_SHIFT;
	return ((now >> FW_WHILE_SHIFT) - (answer >> FLOW_WHILE) & 3) > 1;
}

static __always_inline bool flow_enters_v4(struct fw_flow_set_v4 *set, const struct flow_key *key, __u64 hash, __u64 word,
					   __u64 now)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < FW_FLOW_WAYS; i++) {
		struct fw_flow_v4 *way = &set->way[flow_way(hash, i)];

		if (!is_idle(way->word, now))
			continue;
		way->addresses = key->src[0];
		way->word = word;
		return true;
	}
	return false;
}

static __always_inline bool flow_enters_v6(struct fw_flow_set_v6 *set, const struct flow_key *key, __u64 hash, __u64 word,
					   __u64 now)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < FW_FLOW_WAYS; i++) {
		struct fw_flow_v6 *way = &set->way[flow_way(hash, i)];

		if (!is_idle(way->word, now))
			continue;
		way->src[0] = key->src[0];
		way->src[1] = key->src[1];
		way->dst[0] = key->dst[0];
		way->dst[1] = key->dst[1];
		way->word = word;
		return true;
	}
	return false;
}

/* Keeps an answer, if there is room. A function of its own, verified once. */
__noinline int flow_keep(const struct flow_key *key, __u32 answer, __u32 flow_turn)
{
	__u64 cpu = bpf_get_smp_processor_id(), now = bpf_jiffies64(), turn = now >> (flow_turn & 63);
	__u64 word, hash, set, *old;

	if (!key || cpu >= flow_cpus)
		return 0;
	word = key->word | (__u64)answer << FLOW_ANSWER;
	old = key->family == 4 ? find_flow_v4(key, cpu, turn) : find_flow_v6(key, cpu, turn);
	if (old) {
		*old = word;
		return 1;
	}
	if (key->family == 4) {
		hash = flow_hash(key->src[0], key->word);
		set = flow_set(hash, flow_sets, turn);
		return flow_enters_v4(sets_v4(cpu) + set, key, hash, word, now) ||
		       flow_enters_v4(sets_v4(cpu) + (set ^ 1), key, hash, word, now);
	}
	hash = flow_hash_v6(key);
	set = flow_set(hash, flow_sets / 2, turn);
	return flow_enters_v6(sets_v6(cpu) + set, key, hash, word, now) ||
	       flow_enters_v6(sets_v6(cpu) + (set ^ 1), key, hash, word, now);
}
