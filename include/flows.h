/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The flow cache: in front of everything, what the rules said of a flow a moment ago (FW_FLOW_TICKS). Each CPU has its
 * own, so nothing is locked and nothing bounces between CPUs. A hit costs one cache line, which also takes the counting;
 * when the moment is over it moves on to the rule's counters.
 *
 * A flow takes an entry only from one whose moment is over. So a flood of new flows costs at most one write an entry and
 * moment, and does not push out the flows that are busy.
 *
 * An entry is good for one generation only. At a swap the agent waits until no packet is judged by the old one, takes
 * what is left in the entries, empties them and only then opens the cache for the new one (fw_control.flows_generation).
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "stats.h"

/* By CPU; the agent gives it as many entries as there are. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fw_flows);
} fw_flows SEC(".maps");

/* What tells two flows apart, as struct fw_flow has it. */
struct flow_key {
	__u64 src[2], dst[2];
	__u64 rest; /* ports, family, protocol, tcp_flags, iface */
};

static __always_inline struct fw_flow_set *flow_set(const struct flow_key *key)
{
	__u64 hash = key->src[0] ^ key->rest * 0x9e3779b97f4a7c15ULL;
	__u32 cpu = bpf_get_smp_processor_id();
	struct fw_flows *flows = bpf_map_lookup_elem(&fw_flows, &cpu);

	if (key->rest >> 32 & 2) /* IPv6: 6, not 4 */
		hash ^= (key->src[1] ^ key->dst[1] << 1) * 0xc2b2ae3d27d4eb4fULL ^ key->dst[0];
	hash ^= hash >> 32;
	hash *= 0xd6e8feb86659fd93ULL;
	return flows ? &flows->set[hash >> 40 & (FW_FLOW_SETS - 1)] : NULL;
}

static __always_inline bool is_flow(const struct fw_flow *flow, const struct flow_key *key, __u32 generation)
{
	__u64 rest = *(const __u64 *)&flow->ports;

	if (rest != key->rest || flow->src[0] != key->src[0] || flow->generation != generation)
		return false;
	return !(key->rest >> 32 & 2) ||
	       !((flow->src[1] ^ key->src[1]) | (flow->dst[0] ^ key->dst[0]) | (flow->dst[1] ^ key->dst[1]));
}

static __always_inline struct fw_flow *flow_in(struct fw_flow_set *set, const struct flow_key *key, __u32 generation)
{
	if (is_flow(&set->way[0], key, generation))
		return &set->way[0];
	return is_flow(&set->way[1], key, generation) ? &set->way[1] : NULL;
}

/* Whether an entry may answer. Also right for one that was never used, however the clock stands. */
static __always_inline bool is_fresh(const struct fw_flow *flow, __u32 now)
{
	return flow->until - now - 1 < FW_FLOW_TICKS;
}

/* An entry that a new flow may take. */
static __always_inline struct fw_flow *flow_free(struct fw_flow_set *set, __u32 now)
{
	if (!is_fresh(&set->way[0], now))
		return &set->way[0];
	return is_fresh(&set->way[1], now) ? NULL : &set->way[1];
}

/* Counts what an entry has kept so far. A function of its own: most packets add to what is kept instead. */
__noinline int flow_count(struct fw_flow *flow)
{
	struct fw_iface_count *by_iface;
	struct fw_rule_count *by_rule;
	__u32 slot, iface, cell;

	if (!flow || !flow->packets)
		return 0;
	slot = flow->slot;
	iface = flow->iface;
	cell = flow->cell;
	by_rule = bpf_map_lookup_elem(&rule_counts, &slot);
	by_iface = bpf_map_lookup_elem(&iface_counts, &iface);
	if (by_rule && by_iface && cell < FW_VERDICT_COUNTS) {
		by_rule->packets += flow->packets;
		by_rule->bytes += flow->bytes;
		by_iface->packets[cell] += flow->packets;
		by_iface->bytes[cell] += flow->bytes;
	}
	flow->packets = 0;
	flow->bytes = 0;
	return 0;
}
